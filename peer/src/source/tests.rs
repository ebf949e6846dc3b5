//! Against real servers, and against one that misbehaves.

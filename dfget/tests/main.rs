//! dfget against a dfdaemon made for the test: the binary as a script would start it, and the library where a test
//! must stand in for the engine or the reader of listings.

mod binary;
mod fake;
mod library;
mod page;

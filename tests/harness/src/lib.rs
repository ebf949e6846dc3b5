//! Starts real programs in network namespaces for the tests, the demo and the benches.



//! Integration tests: the library and the binary against real servers. `tests/run` brings them.

/// What the tests share: servers, a link that can be cut, processes, bounded waits.
mod support;

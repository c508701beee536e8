//! What operators tell running work: on shared servers with several workers, and on `fanwise serve`.

//! Memory: the heap ceiling of GHC and the proof that it is in force.

//! Job processes: starting them, finding them again, ending them.

//! Static archives: reading, checking and mending them.

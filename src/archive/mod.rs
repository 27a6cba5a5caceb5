//! Static archives: reading, checking and mending them.
//!
//! A cut archive is found by nothing that looks at it in passing: `ar t` lists what is left and exits 0,
//! a link that wants no lost member succeeds, and GHC dies of it at the very end of a build. This room reads
//! an archive as its format says (ar(5); GNU, BSD and COFF flavours, thin archives), without the bodies of
//! its members, and says what is wrong, who would fail of it, and what mends it.
//!
//! | Module | Holds |
//! | --- | --- |
//! | [`mod@check`] | the walk over an archive, and the report that it gives |
//! | [`fault`] | what can be wrong, and how much of the archive is lost by it |
//! | [`readers`] | how GHC, its linker, `ld` and the others take it |
//! | [`find`] | the archives below a directory |
//! | [`mend`] | mending: donor, comparison, atomic replacement |
//! | [`nix`] | what the Nix store can do for a path of its own |
//! | [`words`] | reports as text, JSON and a job summary |

pub mod check;
pub mod fault;
pub mod find;
mod header;
pub mod mend;
pub mod nix;
pub mod readers;
mod symbols;
mod window;
pub mod words;

pub use check::{CheckError, Report, check};
pub use fault::{Fault, What};

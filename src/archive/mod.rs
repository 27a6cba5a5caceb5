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
//! | [`survey`] | many archives at once, store paths against Nix's book |
//! | [`memory`] | what was sound, so that it is not read again |
//! | [`nar`] | Nix's serialisation: hashing a path, taking a file out of a stream |
//! | [`store`], [`nix`] | a store path against Nix's book; what Nix knows and can do |
//! | [`mend`] | mending: the sources in their order, what is compared, what is proven |
//! | [`donor`] | where bytes come from: files, HTTP, SSH, binary caches |
//! | [`replace`] | the atomic replacement of a file |
//! | [`salvage`] | what is left of an archive, as an archive |
//! | [`kept`] | old files that were kept, and putting them back |
//! | [`explain`] | which archive and member a position in an error message belongs to |
//! | [`words`] | reports as text, JSON and a job summary |

mod agree;
pub mod check;
pub mod donor;
pub mod explain;
pub mod fault;
pub mod find;
mod header;
mod inside;
pub mod kept;
pub mod memory;
pub mod mend;
mod names;
pub mod nar;
pub mod nix;
mod object;
pub mod readers;
pub mod replace;
pub mod salvage;
pub mod store;
pub mod survey;
mod symbols;
mod window;
pub mod words;

pub use check::{CheckError, Report, check};
pub use fault::{Fault, What};

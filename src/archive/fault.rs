//! What can be wrong with an archive, and how much of it is lost by it.

use serde::Serialize;

/// Something that is wrong, where, and in which member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Position in the file, in bytes from its start.
    pub position: u64,
    /// The member that it is about, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<Member>,
    /// What is wrong.
    #[serde(flatten)]
    pub what: What,
}

/// Where a member stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its name as the archive has it, long names resolved; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// Position of its header.
    pub header: u64,
    /// Position of its content.
    pub content: u64,
    /// Size of its content by its header.
    pub size: u64,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum What {
    /// The file has no bytes.
    Empty,
    /// The file begins with something else than an archive's magic.
    NotAnArchive {
        /// Its first bytes, escaped.
        begins_with: String,
    },
    /// The file ends inside the magic.
    MagicCut,
    /// The file ends inside a member header.
    HeaderCut {
        /// Bytes of the header that are there, of 60.
        found: u64,
    },
    /// A header does not end with a backquote and a newline: something else is where a header must be.
    HeaderEnd {
        /// The two bytes found, escaped.
        found: String,
    },
    /// The size in a header is not a number.
    HeaderSize {
        /// The field as it stands, escaped.
        found: String,
    },
    /// A member's content runs past the end of the file.
    ContentCut {
        /// Bytes that the header promises.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// The last member has an odd size and the byte that evens it out is not there.
    PaddingMissing,
    /// The file ends between two members: the symbol table knows members behind its end.
    CutBetweenMembers,
    /// The symbol table cannot be read.
    SymbolTable {
        /// Why.
        why: String,
    },
    /// Symbols point at places where no member begins.
    SymbolsAstray {
        /// How many.
        count: u64,
        /// Where the first of them points.
        points_at: u64,
    },
    /// A long name lies outside the name table.
    LongName {
        /// Offset into the table of names.
        offset: u64,
        /// Size of the table of names; 0 if there is none.
        table: u64,
    },
    /// A BSD long name is longer than its member.
    BsdName {
        /// Length of the name by the header.
        length: u64,
    },
    /// A long name is at a place in the table of long names where none begins.
    LongNameMiddle {
        /// Where it should be.
        offset: u64,
    },
    /// A long name in the table of long names has no end.
    LongNameEndless {
        /// Where it begins.
        offset: u64,
    },
    /// A name is none: neither a short one nor the number of a long one.
    BadName {
        /// The field, escaped.
        found: String,
    },
    /// A short name does not end with a slash, as the names of this archive do.
    NameUnended {
        /// The field, escaped.
        found: String,
    },
    /// The file that a member of a thin archive stands for cannot be looked at.
    ThinMissing {
        /// The file.
        file: String,
        /// What the system says.
        why: String,
    },
    /// The file that a member of a thin archive stands for has another size.
    ThinSize {
        /// The file.
        file: String,
        /// Size by the archive.
        expected: u64,
        /// Size of the file.
        found: u64,
    },
    /// A member is an object file that ends before what its own header names: it was cut before it was archived.
    ObjectCut {
        /// `ELF` or `Mach-O`.
        format: String,
        /// What lies behind its end.
        part: String,
        /// Bytes that it needs.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A member that should be an object file begins with zeros: its blocks never reached the disk.
    ObjectBlank,
    /// Sections of an object file are described by what cannot be their headers: its end never reached the disk.
    ObjectTable {
        /// `ELF`.
        format: String,
        /// Position in the member of what should be a section's header.
        at: u64,
    },
    /// A field of a member's header holds what the format does not allow.
    OddField {
        /// Name of the field.
        field: String,
        /// What it holds, escaped.
        found: String,
    },
    /// The same in the header of a table; no reader looks at it.
    OddTableField {
        /// Name of the field.
        field: String,
        /// What it holds, escaped.
        found: String,
    },
    /// The byte that evens out a member is no newline; no reader looks at it.
    OddPadding {
        /// The byte, escaped.
        found: String,
    },
}

/// Bytes of an archive that are damaged or may be: from, until.
pub type Area = (u64, u64);

impl What {
    /// Whether readers get on with it all the same.
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        matches!(self, Self::OddTableField { .. } | Self::OddPadding { .. })
    }

    /// Whether it is about a symbol table alone, which can be made anew from the members.
    #[must_use]
    pub fn is_about_symbols(&self) -> bool {
        matches!(self, Self::SymbolTable { .. } | Self::SymbolsAstray { .. })
    }

    /// Whether the file ends too early, and may be whole up to its end.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.ends_the_walk()
            && !matches!(self, Self::NotAnArchive { .. } | Self::HeaderEnd { .. } | Self::HeaderSize { .. })
    }

    /// Whether nothing behind it can be read by walking from member to member.
    #[must_use]
    pub fn ends_the_walk(&self) -> bool {
        matches!(
            self,
            Self::Empty
                | Self::NotAnArchive { .. }
                | Self::MagicCut
                | Self::HeaderCut { .. }
                | Self::HeaderEnd { .. }
                | Self::HeaderSize { .. }
                | Self::ContentCut { .. }
                | Self::PaddingMissing
                | Self::CutBetweenMembers
        )
    }
}

/// How much is lost, as far as the symbol table tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Members lost whole or in part; more may be lost that define no symbol.
    pub members: u64,
    /// Symbols of these members.
    pub symbols: u64,
    /// The file had at least this many bytes when it was whole.
    pub size_at_least: u64,
}

//! What stands in a member's place: whether an object file in it is whole, whether the file is there that a member of a thin
//! archive stands for.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::fault::What;
use super::names;
use super::object::{self, Overrun, Section, Sections};
use super::window::Window;

/// What a look at a member found.
#[derive(Debug)]
pub(super) enum Inside {
    /// Nothing wrong, or nothing that is known here.
    Fine,
    /// It begins with zeros.
    Blank,
    /// It is an object file, and not whole.
    Wrong(What),
}

/// Looks at the object file of `size` bytes at `content`. `walk` has its first bytes; `aside` is for what lies elsewhere.
pub(super) fn object(
    walk: &mut Window<'_>,
    aside: &mut Window<'_>,
    content: u64,
    size: u64,
) -> io::Result<Inside> {
    // ELF says it all in its first bytes, which came with the header.
    let mut first = walk.hop(content, size.min(object::FIRST as u64) as usize)?;
    if object::is_mach(first) {
        first = walk.hop(content, size.min(object::LOOKED_AT as u64) as usize)?;
    }
    if let Some(Overrun { format, part, end }) = object::overrun(first, size) {
        return Ok(Inside::Wrong(cut(format, part, end, size)));
    }
    if let Some(sections) = object::sections(first) {
        let found = Table { sections, aside, content, size }.look()?;
        return Ok(found.map_or(Inside::Fine, Inside::Wrong));
    }
    let blank = first.len() == object::FIRST && first.iter().all(|&byte| byte == 0);
    Ok(if blank { Inside::Blank } else { Inside::Fine })
}

fn cut(format: &str, part: &str, expected: u64, found: u64) -> What {
    What::ObjectCut { format: format.to_owned(), part: part.to_owned(), expected, found }
}

/// The section headers of one ELF object.
struct Table<'w, 'a> {
    sections: Sections,
    aside: &'w mut Window<'a>,
    content: u64,
    size: u64,
}

impl Table<'_, '_> {
    fn read(&mut self, index: u64) -> io::Result<Option<Section>> {
        let at = self.sections.offset.saturating_add(index.saturating_mul(self.sections.entry));
        if at.checked_add(self.sections.entry).is_none_or(|end| end > self.size) {
            return Ok(None);
        }
        let bytes = self.aside.hop(self.content + at, self.sections.entry.min(64) as usize)?;
        Ok(self.sections.read(bytes))
    }

    /// The header of the names must be one of strings: where blocks never reached the disk there are zeros. Only where
    /// something may lie behind the headers, all of them are looked at.
    fn look(&mut self) -> io::Result<Option<What>> {
        // Where there are more than the fields of the object's header can count, the first one says it.
        if (self.sections.count == 0 || self.sections.names == 0xffff)
            && let Some(first) = self.read(0)?
        {
            if self.sections.count == 0 {
                self.sections.count = first.size;
            }
            if self.sections.names == 0xffff {
                self.sections.names = first.link;
            }
            if self.sections.end() > self.size {
                return Ok(Some(cut("ELF", "section headers", self.sections.end(), self.size)));
            }
        }
        if self.sections.names != 0 {
            let names = self.read(self.sections.names)?.filter(|names| names.kind == object::STRINGS);
            let Some(names) = names else {
                let place = self.sections.names.saturating_mul(self.sections.entry);
                let at = self.sections.offset.saturating_add(place);
                return Ok(Some(What::ObjectTable { format: "ELF".to_owned(), at }));
            };
            if names.end > self.size {
                return Ok(Some(cut("ELF", "the names of its sections", names.end, self.size)));
            }
        }
        if self.sections.end().saturating_add(8) > self.size {
            return Ok(None);
        }
        for index in 0..self.sections.count {
            match self.read(index)? {
                Some(section) if section.end > self.size => {
                    return Ok(Some(cut("ELF", "a section", section.end, self.size)));
                }
                Some(_) => {}
                None => break,
            }
        }
        Ok(None)
    }
}

/// Looks at the file that a member of the thin archive `path` stands for: never opened, since it may be anything. `origin` is
/// where it has its header if that file is an archive again.
pub(super) fn thin(path: &Path, name: &[u8], origin: Option<u64>, size: u64) -> Option<What> {
    let file = path.parent().unwrap_or(Path::new("")).join(OsStr::from_bytes(name));
    let missing = |why: String| Some(What::ThinMissing { file: file.display().to_string(), why });
    let meta = match std::fs::metadata(&file) {
        Err(error) => return missing(error.to_string()),
        Ok(meta) if meta.is_dir() => return missing("it is a directory".to_owned()),
        Ok(meta) if !meta.is_file() => return missing("it is a device, socket or pipe".to_owned()),
        Ok(meta) => meta,
    };
    let expected = origin.map_or(size, |origin| names::nested_end(origin, size));
    let fits = if origin.is_some() { meta.len() >= expected } else { meta.len() == expected };
    (!fits).then(|| What::ThinSize { file: file.display().to_string(), expected, found: meta.len() })
}

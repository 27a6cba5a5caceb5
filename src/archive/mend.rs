//! Mending an archive: from a whole copy of it, from as much of one as is missing, or, if asked to, from itself.
//!
//! A donor is compared with what is still whole before anything is written, the result is checked and, where Nix knows
//! the store path, hashed before it takes the old file's place ([`super::replace`]).

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::check::{self, CheckError, Report, check};
use super::donor::{self, Donor, Parts, Source, Stream, Wanted};
use super::nar::{self, Instead, Sum};
use super::replace::{Failed, Replacement, failed, folder};
use super::salvage::{self, Losses};
use super::{kept, nix, words};

/// Bytes before the break that a distant donor must agree with.
const COMPARED: u64 = 1 << 20;
/// Bytes at the beginning that it must agree with: magic, the symbol table's header and its first offsets.
const COMPARED_FIRST: u64 = 64 << 10;
/// Pieces of what lies between that it must agree with, and their size.
const SAMPLES: u64 = 16;
const SAMPLE: u64 = 4 << 10;

/// How it is mended.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Say what would be done and do nothing.
    pub dry_run: bool,
    /// Keep the old file, so that [`kept::undo`] can put it back.
    pub keep_old: bool,
    /// Where no source helps: make an archive of the members that are whole.
    pub salvage: bool,
}

/// What a mend did.
#[derive(Debug)]
pub enum Mended {
    /// It was sound already.
    Sound(Report),
    /// What would be done.
    Would {
        /// The archive as it is.
        before: Report,
        /// In words.
        plan: String,
    },
    /// It is sound now.
    Done(Box<Done>),
}

/// A mend that was done.
#[derive(Debug)]
pub struct Done {
    /// As it was.
    pub before: Report,
    /// As it is.
    pub after: Report,
    /// SHA-256 of the old file, in hexadecimal.
    pub before_hash: String,
    /// SHA-256 of the new one.
    pub after_hash: String,
    /// Where the bytes came from, in words.
    pub source: String,
    /// What is lost for good, if it was made of what was left.
    pub losses: Option<Losses>,
    /// Things to know.
    pub notices: Vec<String>,
}

/// Why an archive was not mended.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    /// The file could not be looked at.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// A file could not be read or written.
    #[error(transparent)]
    Failed(#[from] Failed),
    /// No source could give a whole copy; the file is as it was.
    #[error("{}: not mended, and left as it is: no source has a whole copy of it{}", path.display(), reasons.iter().map(|reason| format!("\n  {reason}")).collect::<String>())]
    NoSource {
        /// The file.
        path: PathBuf,
        /// Why each source was of no use.
        reasons: Vec<String>,
    },
}

/// Mends the archive at `path` from the first of `sources` that has a whole copy.
///
/// Waits while another mend works in the same directory; `notice` is told so.
///
/// # Errors
/// See [`MendError`]. Whatever fails, the file is either as it was or whole.
pub fn mend(
    path: &Path,
    sources: &[Source],
    options: &Options,
    notice: &mut dyn FnMut(&str),
) -> Result<Mended, MendError> {
    // A link stays a link: what it leads to is mended.
    let real =
        std::fs::canonicalize(path).map_err(|source| CheckError::Io { path: path.to_owned(), source })?;
    let mut before = check(&real)?;
    before.path = path.to_owned();
    if before.sound {
        return Ok(Mended::Sound(before));
    }
    let _lock = if options.dry_run { None } else { Some(lock(&real, notice)?) };
    if !options.dry_run {
        // While we waited, another mend may have done it.
        before = check(&real)?;
        before.path = path.to_owned();
        if before.sound {
            return Ok(Mended::Sound(before));
        }
    }
    let old = check::open(&real)?;
    let meta = old.metadata().map_err(failed(&real, "looking at it"))?;
    let job =
        Job { real: &real, before: &before, old: &old, meta: &meta, stored: Stored::of(&real), options };
    let mut reasons = Vec::new();
    let built_so = job.stored.as_ref().is_some_and(|stored| stored.was_built_so());
    for source in sources {
        if built_so {
            // Whatever takes its place has another hash than Nix's book.
            reasons.push("Nix's book has the hash of the file as it is: it was cut when it was built or stored, so no copy can be right; rebuild it with `nix build --repair` or remove the path with `nix store delete`".to_owned());
            break;
        }
        let attempt = match source {
            Source::Nix => job.by_nix(),
            Source::Path(given) => job.by_path(given),
            distant => job.by_distant(distant),
        };
        match attempt {
            Ok(mended) => return Ok(mended),
            Err(Refused::Because(reason)) => reasons.push(reason),
            Err(Refused::Failed(error)) => return Err(error),
        }
    }
    if options.salvage {
        match job.salvage() {
            Ok(mended) => return Ok(mended),
            Err(Refused::Because(reason)) => reasons.push(format!("salvage: {reason}")),
            Err(Refused::Failed(error)) => return Err(error),
        }
    }
    Err(MendError::NoSource { path: path.to_owned(), reasons })
}

/// Why a source did not lead to a mend.
enum Refused {
    /// The next one may.
    Because(String),
    /// None will.
    Failed(MendError),
}

impl<E: Into<MendError>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// One mend at a time in a directory. The lock is on the directory itself: nothing is left behind by it.
fn lock(path: &Path, notice: &mut dyn FnMut(&str)) -> Result<File, MendError> {
    let directory = File::open(folder(path)).map_err(failed(folder(path), "opening the directory"))?;
    match directory.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            notice(&format!("{}: another mend works in this directory; waiting for it", path.display()));
            directory.lock().map_err(failed(path, "waiting for another mend"))?;
        }
        Err(TryLockError::Error(source)) => return Err(failed(path, "locking the directory")(source).into()),
    }
    Ok(directory)
}

/// A file of the Nix store.
struct Stored {
    path: PathBuf,
    /// By Nix's book, or why that could not be asked.
    known: Result<Sum, String>,
}

impl Stored {
    fn of(real: &Path) -> Option<Self> {
        let path = nix::store_path(real)?;
        let known = nix::known::ask_one(&path);
        Some(Self { path, known })
    }

    /// Whether the path is, cut file and all, what Nix's book says.
    fn was_built_so(&self) -> bool {
        let Ok(known) = &self.known else { return false };
        nar::size(&self.path).is_ok_and(|size| size == known.size)
            && nar::sum(&self.path, None).is_ok_and(|sum| sum == *known)
    }
}

/// One archive that is being mended.
struct Job<'a> {
    real: &'a Path,
    before: &'a Report,
    old: &'a File,
    meta: &'a std::fs::Metadata,
    stored: Option<Stored>,
    options: &'a Options,
}

impl Job<'_> {
    fn by_nix(&self) -> Result<Mended, Refused> {
        let Some(stored) = &self.stored else {
            return Err(Refused::Because(format!(
                "nix: {} is not in the Nix store; give --from FILE or DIR",
                self.real.display()
            )));
        };
        let shown = stored.path.display();
        if self.options.dry_run {
            let plan = format!("would run `nix store repair {shown}`");
            return Ok(Mended::Would { before: self.before.clone(), plan });
        }
        let kept = self.keep()?;
        // Nix might link the damaged content back into the path that it has just repaired.
        let mut notices = Vec::new();
        self.forget_link(&mut notices);
        nix::repair(&stored.path).map_err(|said| Refused::Because(format!("nix: {said}")))?;
        let after = check(self.real)?;
        if !after.sound {
            let why = "nix: the path was repaired and is still not sound: it was built or stored like this; give --from, or rebuild it with `nix build --repair`";
            return Err(Refused::Because(why.to_owned()));
        }
        self.done(after, format!("nix store repair {shown}"), None, notices, kept)
    }

    fn by_path(&self, given: &Path) -> Result<Mended, Refused> {
        let shown = given.display();
        if !given.is_dir() {
            return self.by_file(given);
        }
        if donor::is_cache(given) {
            return self.by_distant(&Source::Path(given.to_owned()));
        }
        let name = self.real.file_name().unwrap_or_default();
        // Another store, or the root of another system, has it where it belongs.
        let mut donors: Vec<PathBuf> = Vec::new();
        if let Some(stored) = &self.stored
            && let (Some(base), Ok(inside)) = (stored.path.file_name(), self.real.strip_prefix(&stored.path))
        {
            let places = [given.join(base), given.join("nix/store").join(base)];
            donors.extend(places.map(|place| place.join(inside)).into_iter().filter(|path| path.is_file()));
        }
        if donors.is_empty() {
            let found = super::find::archives_below(given).archives;
            donors.extend(found.into_iter().filter(|path| path.file_name() == Some(name)));
        }
        let direct = given.join(name);
        if donors.is_empty() && direct.is_file() {
            donors.push(direct);
        }
        if donors.is_empty() {
            return Err(Refused::Because(format!("{shown}: no file {} in it", name.display())));
        }
        let mut reasons = Vec::new();
        for donor in donors {
            match self.by_file(&donor) {
                Err(Refused::Because(reason)) => reasons.push(reason),
                other => return other,
            }
        }
        Err(Refused::Because(reasons.join("\n  ")))
    }

    fn by_file(&self, donor: &Path) -> Result<Mended, Refused> {
        let shown = donor.display().to_string();
        let because = |reason: String| Refused::Because(format!("{shown}: {reason}"));
        let whole = check(donor).map_err(|error| Refused::Because(error.to_string()))?;
        if !whole.sound {
            let wrong =
                whole.faults.first().map(|fault| words::fault_text(fault, whole.size)).unwrap_or_default();
            return Err(because(format!("it is not sound itself: {wrong}")));
        }
        let file = check::open(donor)?;
        let meta = file.metadata().map_err(failed(donor, "looking at it"))?;
        if (meta.dev(), meta.ino()) == (self.meta.dev(), self.meta.ino()) {
            return Err(because("it is the same file".to_owned()));
        }
        let vouched = self.vouched(whole.size).map_err(because)?;
        if vouched <= 68 && self.real.file_name() != donor.file_name() {
            let why = "nothing of the old file is left that could vouch for it, and its name is another";
            return Err(because(why.to_owned()));
        }
        let mut parts = LocalFile { file, shown: shown.clone(), size: whole.size };
        let mut compare = Compare::new(self.old, 0, vouched);
        parts.copy(0, vouched, &mut compare).map_err(|why| compare.refusal(&shown, why))?;
        let source = format!("{shown}, equal in the first {} bytes", words::grouped(vouched));
        if self.options.dry_run {
            return Ok(self.would(&source, whole.size));
        }
        let mut replacement = Replacement::new(self.real, whole.size)?;
        parts.copy(0, whole.size, replacement.file()).map_err(Refused::Because)?;
        self.put(replacement, whole.size, source, None)
    }

    fn by_distant(&self, source: &Source) -> Result<Mended, Refused> {
        let name = self.real.file_name().unwrap_or_default().to_string_lossy();
        let stored = self
            .stored
            .as_ref()
            .and_then(|stored| Some((stored.path.as_path(), self.real.strip_prefix(&stored.path).ok()?)));
        let nar_hash = self.stored.as_ref().and_then(|stored| Some(stored.known.as_ref().ok()?.hash));
        match donor::reach(source, Wanted { name: &name, stored, nar_hash }).map_err(Refused::Because)? {
            Donor::Parts(parts) => self.by_parts(parts),
            Donor::Stream(stream) => self.by_stream(stream),
        }
    }

    /// Only what is missing is fetched, and enough of the rest to see that it is the same archive. The symbol table, which
    /// is ours, must then agree with every header that came.
    fn by_parts(&self, mut parts: Box<dyn Parts>) -> Result<Mended, Refused> {
        let (shown, size) = (parts.name(), parts.size());
        let vouched = self.vouched(size).map_err(|reason| Refused::Because(format!("{shown}: {reason}")))?;
        if vouched <= 68 {
            let why =
                "too little of the old file is left to vouch for a distant copy; fetch it and name the file";
            return Err(Refused::Because(format!("{shown}: {why}")));
        }
        let mut fetched = 0;
        for (from, length) in compared(vouched) {
            let mut compare = Compare::new(self.old, from, vouched);
            parts.copy(from, length, &mut compare).map_err(|why| compare.refusal(&shown, why))?;
            fetched += length;
        }
        let source = format!(
            "{shown}, {} bytes of it read, {} of them compared",
            words::grouped(fetched + size - vouched),
            words::grouped(fetched)
        );
        if self.options.dry_run {
            return Ok(self.would(&source, size));
        }
        let mut replacement = Replacement::new(self.real, size)?;
        copy_old(self.old, vouched, replacement.file())
            .map_err(failed(self.real, "copying what is whole"))?;
        parts.copy(vouched, size - vouched, replacement.file()).map_err(Refused::Because)?;
        self.put(replacement, size, source, None)
    }

    fn by_stream(&self, mut stream: Box<dyn Stream>) -> Result<Mended, Refused> {
        let (shown, size) = (stream.name(), stream.size());
        let because = |reason: String| Refused::Because(format!("{shown}: {reason}"));
        let vouched = self.vouched(size).map_err(because)?;
        if self.options.dry_run {
            return Ok(self.would(&shown, size));
        }
        let mut replacement = Replacement::new(self.real, size)?;
        let mut compare = Compare::new(self.old, 0, vouched);
        let mut buffer = vec![0; 256 * 1024];
        let mut left = size;
        while left > 0 {
            let want = left.min(buffer.len() as u64) as usize;
            let read = stream
                .read(buffer.get_mut(..want).unwrap_or_default())
                .map_err(|error| because(error.to_string()))?;
            if read == 0 {
                return Err(because("it ends too early".to_owned()));
            }
            let some = buffer.get(..read).unwrap_or_default();
            compare.write_all(some).map_err(|error| compare.refusal(&shown, error.to_string()))?;
            replacement.file().write_all(some).map_err(failed(self.real, "making a copy beside it"))?;
            left -= read as u64;
        }
        stream.finish().map_err(Refused::Because)?;
        let source = format!("{shown}, equal in the first {} bytes", words::grouped(vouched));
        self.put(replacement, size, source, None)
    }

    fn salvage(&self) -> Result<Mended, Refused> {
        let plan = salvage::plan(self.old, self.before).map_err(Refused::Because)?;
        if self.options.dry_run {
            let text = format!("would make an archive of what is whole: {}", words::losses(&plan.losses));
            return Ok(Mended::Would { before: self.before.clone(), plan: text });
        }
        let mut replacement = Replacement::new(self.real, plan.size)?;
        plan.write(self.old, replacement.file()).map_err(failed(self.real, "writing what is whole"))?;
        let source = "what is whole of it".to_owned();
        self.put(replacement, plan.size, source, Some(plan.losses))
    }

    /// How much of the old file must be in a copy of `size` bytes, byte for byte: all that lies before the break. Where the
    /// file was cut, that is all there is.
    fn vouched(&self, size: u64) -> Result<u64, String> {
        if size < self.before.size || self.before.lost.is_some_and(|lost| size < lost.size_at_least) {
            return Err(format!("it is too small to be a whole copy: {} bytes", words::grouped(size)));
        }
        match self.before.break_point() {
            Some(fault) if size > self.before.size && fault.what.is_cut() => Ok(self.before.size),
            Some(fault) => Ok(fault.position.min(self.before.whole_until)),
            None => Err(
                "the archive is not cut, so that no copy can be compared with it; rebuild it or run ranlib"
                    .to_owned(),
            ),
        }
    }

    fn would(&self, source: &str, size: u64) -> Mended {
        let plan = format!("would replace it by {} bytes from {source}", words::grouped(size));
        Mended::Would { before: self.before.clone(), plan }
    }

    /// Proves the copy and puts it in the old file's place.
    fn put(
        &self,
        replacement: Replacement,
        size: u64,
        source: String,
        losses: Option<Losses>,
    ) -> Result<Mended, Refused> {
        replacement.finish(self.meta)?;
        let proof = check(&replacement.path())?;
        if !proof.sound || proof.size != size {
            let wrong = proof.faults.first().map(|fault| words::fault_text(fault, proof.size));
            let wrong = wrong.unwrap_or_else(|| "it changed while it was copied".to_owned());
            return Err(Refused::Because(format!(
                "{source}: with it the archive would not be sound: {wrong}"
            )));
        }
        let mut notices = Vec::new();
        self.prove_hash(&replacement, &source, losses.is_some(), &mut notices)?;
        let kept = self.keep()?;
        replacement.put()?;
        self.forget_link(&mut notices);
        let others = self
            .meta
            .nlink()
            .saturating_sub(1 + notices.iter().filter(|n| n.contains(".links")).count() as u64);
        if others > 0 {
            notices.push(format!(
                "{}: {others} other name(s) of the same file were left as they are; check them too",
                self.real.display()
            ));
        }
        let after = check(self.real)?;
        self.done(after, source, losses, notices, kept)
    }

    /// What Nix knows must be right before the copy takes its place.
    fn prove_hash(
        &self,
        replacement: &Replacement,
        source: &str,
        salvaged: bool,
        notices: &mut Vec<String>,
    ) -> Result<(), Refused> {
        let Some(stored) = &self.stored else { return Ok(()) };
        let known = match &stored.known {
            Ok(known) => known,
            Err(why) => {
                notices.push(format!("its hash could not be compared with Nix's book: {why}"));
                return Ok(());
            }
        };
        if salvaged {
            notices
                .push("Nix's book has another hash for this path: `nix store verify` will say so".to_owned());
            return Ok(());
        }
        let content = replacement.path();
        let instead = Instead { path: self.real, content: &content };
        let sum = nar::sum(&stored.path, Some(instead)).map_err(failed(&stored.path, "hashing"))?;
        if sum == *known {
            notices.push(format!("the hash of {} is what Nix's book says", stored.path.display()));
            return Ok(());
        }
        let others = super::find::archives_below(&stored.path).archives;
        let broken = others.iter().filter(|path| *path != self.real);
        let broken = broken.filter(|path| check(path).is_ok_and(|report| !report.sound)).count();
        if broken == 0 {
            return Err(Refused::Because(format!(
                "{source}: with it the hash of {} would not be what Nix's book says",
                stored.path.display()
            )));
        }
        notices.push(format!("{broken} other archive(s) of the same store path are not sound: only when all are mended can its hash be right"));
        Ok(())
    }

    fn keep(&self) -> Result<Option<PathBuf>, Failed> {
        self.options.keep_old.then(|| kept::keep(self.real)).transpose()
    }

    fn forget_link(&self, notices: &mut Vec<String>) {
        if !nix::links::is_store_file(self.real) {
            return;
        }
        match nix::links::forget(self.meta) {
            Ok(Some(link)) => notices.push(format!(
                "{}: the damaged content's name in .links was removed, so that Nix links it nowhere again",
                link.display()
            )),
            Ok(None) => {}
            Err(why) => notices.push(format!("the damaged content may have a name in .links: {why}")),
        }
    }

    fn done(
        &self,
        mut after: Report,
        source: String,
        losses: Option<Losses>,
        mut notices: Vec<String>,
        kept: Option<PathBuf>,
    ) -> Result<Mended, Refused> {
        after.path.clone_from(&self.before.path);
        let hash = |file: &File| nar::file_hash(file).map(|hash| nar::hex(&hash));
        let before_hash = hash(self.old).map_err(failed(self.real, "hashing the old file"))?;
        let new = check::open(self.real)?;
        let after_hash = hash(&new).map_err(failed(self.real, "hashing it"))?;
        if let Some(old) = kept {
            let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            kept::record(&kept::Record {
                path: self.real.to_owned(),
                old: old.clone(),
                before: before_hash.clone(),
                after: after_hash.clone(),
                source: source.clone(),
                time: time.map_or(0, |time| time.as_secs()),
            })?;
            notices.push(format!("the old file is kept as {}; --undo puts it back", old.display()));
        }
        tracing::info!(
            path = %self.real.display(), before = self.before.size, after = after.size, before_hash, after_hash, source,
            "archive mended"
        );
        let before = self.before.clone();
        Ok(Mended::Done(Box::new(Done { before, after, before_hash, after_hash, source, losses, notices })))
    }
}

/// Which parts of the first `vouched` bytes a distant donor must agree with: position and length, ascending.
fn compared(vouched: u64) -> Vec<(u64, u64)> {
    if vouched <= COMPARED_FIRST + SAMPLES * SAMPLE + COMPARED {
        return vec![(0, vouched)];
    }
    let mut parts = vec![(0, COMPARED_FIRST)];
    let between = vouched - COMPARED - COMPARED_FIRST;
    parts.extend((0..SAMPLES).map(|index| (COMPARED_FIRST + between / SAMPLES * index, SAMPLE)));
    parts.push((vouched - COMPARED, COMPARED));
    parts
}

fn copy_old(old: &File, until: u64, out: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    while at < until {
        let take = (until - at).min(buffer.len() as u64) as usize;
        let some = buffer.get_mut(..take).unwrap_or_default();
        old.read_exact_at(some, at)?;
        out.write_all(some)?;
        at += take as u64;
    }
    Ok(())
}

/// A file of this machine as a donor.
struct LocalFile {
    file: File,
    shown: String,
    size: u64,
}

impl Parts for LocalFile {
    fn name(&self) -> String {
        self.shown.clone()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn copy(&mut self, from: u64, length: u64, sink: &mut dyn Write) -> Result<(), String> {
        let words = |error: io::Error| format!("{}: {error}", self.shown);
        let mut buffer = vec![0; 256 * 1024];
        let mut at = from;
        while at < from + length {
            let want = (from + length - at).min(buffer.len() as u64) as usize;
            let read = self.file.read_at(buffer.get_mut(..want).unwrap_or_default(), at).map_err(words)?;
            if read == 0 {
                return Err(format!("{}: it changed while it was copied", self.shown));
            }
            sink.write_all(buffer.get(..read).unwrap_or_default()).map_err(words)?;
            at += read as u64;
        }
        Ok(())
    }
}

/// Compares what is written to it with the old file, as far as that is whole.
struct Compare<'a> {
    old: &'a File,
    at: u64,
    until: u64,
    held: Vec<u8>,
    difference: Option<u64>,
}

impl<'a> Compare<'a> {
    fn new(old: &'a File, from: u64, until: u64) -> Self {
        Self { old, at: from, until, held: Vec::new(), difference: None }
    }

    fn refusal(&self, shown: &str, why: String) -> Refused {
        Refused::Because(match self.difference {
            Some(position) => format!(
                "{shown}: it is another archive: the first difference is at position {}",
                words::grouped(position)
            ),
            None if why.starts_with(shown) => why,
            None => format!("{shown}: {why}"),
        })
    }
}

impl Write for Compare<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let take = self.until.saturating_sub(self.at).min(bytes.len() as u64) as usize;
        self.held.resize(take, 0);
        self.old.read_exact_at(&mut self.held, self.at)?;
        if let Some(index) = self.held.iter().zip(bytes).position(|(a, b)| a != b) {
            self.difference = Some(self.at + index as u64);
            return Err(io::Error::other("it is another archive"));
        }
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

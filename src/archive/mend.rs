//! Mending an archive: from a whole copy of it, from as much of one as is missing, or, if asked to, from itself.
//!
//! A donor is compared with what is still whole before anything is written, the result is checked and, where Nix knows
//! the store path, hashed before it takes the old file's place ([`super::replace`]).

use std::fs::{File, TryLockError};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::agree::{Agreed, Compare, LocalFile, copy_old};
use super::check::{self, CheckError, Report, check, check_for};
use super::donor::{self, Donor, Parts, Source, Stream, Wanted};
use super::nar::{self, Instead, Sum};
use super::replace::{Failed, Replacement, failed, folder};
use super::salvage::{self, Losses};
use super::{kept, nix, words};

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
    let stored = Stored::of(&real);
    // Of a sound archive in the Nix store the bodies may be damaged: that only Nix's book tells.
    let is_well = |report: &Report| report.sound && stored.as_ref().is_none_or(|stored| !stored.differs());
    let mut before = check(&real)?;
    before.path = path.to_owned();
    if is_well(&before) {
        return Ok(Mended::Sound(before));
    }
    let _lock = if options.dry_run { None } else { Some(lock(&real, notice)?) };
    if !options.dry_run {
        // While we waited, another mend may have done it.
        before = check(&real)?;
        before.path = path.to_owned();
        if is_well(&before) {
            return Ok(Mended::Sound(before));
        }
    }
    let old = check::open(&real)?;
    let meta = old.metadata().map_err(failed(&real, "looking at it"))?;
    let job = Job { real: &real, before: &before, old: &old, meta: &meta, stored: stored.as_ref(), options };
    let mut reasons = Vec::new();
    let built_so = !before.sound && job.stored.is_some_and(|stored| stored.was_built_so());
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

/// What takes the place of the old file.
enum Made {
    /// A whole copy.
    Whole,
    /// What was whole of it, and what is lost.
    Salvaged(Option<Losses>),
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

    /// Whether Nix knows the path, and as something else than it is.
    fn differs(&self) -> bool {
        self.known.is_ok() && !self.was_built_so()
    }
}

/// One archive that is being mended.
struct Job<'a> {
    real: &'a Path,
    before: &'a Report,
    old: &'a File,
    meta: &'a std::fs::Metadata,
    stored: Option<&'a Stored>,
    options: &'a Options,
}

impl Job<'_> {
    fn by_nix(&self) -> Result<Mended, Refused> {
        let Some(stored) = self.stored else {
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
        if stored.differs() {
            return Err(Refused::Because(format!(
                "nix: {shown} was repaired and is still not what Nix's book says"
            )));
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
        if let Some(stored) = self.stored
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
        let whole = check_for(donor, self.real).map_err(|error| Refused::Because(error.to_string()))?;
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
        let agreed = self.agreed(whole.size).map_err(because)?;
        if !agreed.vouches() && !self.hash_is_known() && self.real.file_name() != donor.file_name() {
            let why = "nothing of the old file is left that could vouch for it, and its name is another";
            return Err(because(why.to_owned()));
        }
        let mut parts = LocalFile { file, shown: shown.clone(), size: whole.size };
        for &(from, until) in agreed.ranges() {
            let mut compare = Compare::new(self.old, &agreed, from);
            let compared = parts.copy(from, until - from, &mut compare);
            compared.map_err(|why| refusal(&compare, &shown, why))?;
        }
        let source = format!("{shown}, {}", equal_in(&agreed));
        if self.options.dry_run {
            return Ok(self.would(&source, whole.size));
        }
        let mut replacement = Replacement::new(self.real, whole.size)?;
        parts.copy(0, whole.size, replacement.file()).map_err(Refused::Because)?;
        self.put(replacement, whole.size, source, Made::Whole)
    }

    fn by_distant(&self, source: &Source) -> Result<Mended, Refused> {
        let name = self.real.file_name().unwrap_or_default().to_string_lossy();
        let stored = self
            .stored
            .and_then(|stored| Some((stored.path.as_path(), self.real.strip_prefix(&stored.path).ok()?)));
        let nar_hash = self.stored.and_then(|stored| Some(stored.known.as_ref().ok()?.hash));
        match donor::reach(source, Wanted { name: &name, stored, nar_hash }).map_err(Refused::Because)? {
            Donor::Parts(parts) => self.by_parts(parts),
            Donor::Stream(stream) => self.by_stream(stream),
        }
    }

    /// Only what is missing is fetched, and enough of the rest to see that it is the same archive. The symbol table, which
    /// is ours, must then agree with every header that came.
    fn by_parts(&self, mut parts: Box<dyn Parts>) -> Result<Mended, Refused> {
        let (shown, size) = (parts.name(), parts.size());
        let agreed = self.agreed(size).map_err(|reason| Refused::Because(format!("{shown}: {reason}")))?;
        if !agreed.vouches() && !self.hash_is_known() {
            let why =
                "too little of the old file is left to vouch for a distant copy; fetch it and name the file";
            return Err(Refused::Because(format!("{shown}: {why}")));
        }
        let mut fetched = 0;
        for (from, length) in agreed.samples() {
            let mut compare = Compare::new(self.old, &agreed, from);
            let compared = parts.copy(from, length, &mut compare);
            compared.map_err(|why| refusal(&compare, &shown, why))?;
            fetched += length;
        }
        let missing = agreed.missing(size);
        let source = format!(
            "{shown}, {} bytes of it read, {} of them compared",
            words::grouped(fetched + missing.iter().map(|(from, until)| until - from).sum::<u64>()),
            words::grouped(fetched)
        );
        if self.options.dry_run {
            return Ok(self.would(&source, size));
        }
        let mut replacement = Replacement::new(self.real, size)?;
        let mut pieces: Vec<_> = agreed.ranges().iter().map(|range| (*range, true)).collect();
        pieces.extend(missing.iter().map(|range| (*range, false)));
        pieces.sort_unstable();
        for ((from, until), ours) in pieces {
            if ours {
                copy_old(self.old, (from, until), replacement.file())
                    .map_err(failed(self.real, "copying what is whole"))?;
            } else {
                parts.copy(from, until - from, replacement.file()).map_err(Refused::Because)?;
            }
        }
        self.put(replacement, size, source, Made::Whole)
    }

    fn by_stream(&self, mut stream: Box<dyn Stream>) -> Result<Mended, Refused> {
        let (shown, size) = (stream.name(), stream.size());
        let because = |reason: String| Refused::Because(format!("{shown}: {reason}"));
        let agreed = self.agreed(size).map_err(because)?;
        if self.options.dry_run {
            return Ok(self.would(&shown, size));
        }
        let mut replacement = Replacement::new(self.real, size)?;
        let mut compare = Compare::new(self.old, &agreed, 0);
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
            let compared = compare.write_all(some);
            compared.map_err(|error| refusal(&compare, &shown, error.to_string()))?;
            replacement.file().write_all(some).map_err(failed(self.real, "making a copy beside it"))?;
            left -= read as u64;
        }
        stream.finish().map_err(Refused::Because)?;
        let source = format!("{shown}, {}", equal_in(&agreed));
        self.put(replacement, size, source, Made::Whole)
    }

    fn salvage(&self) -> Result<Mended, Refused> {
        let plan = salvage::plan(self.old, self.before).map_err(Refused::Because)?;
        if self.options.dry_run {
            let lost = plan.losses.as_ref().map_or_else(|| "nothing is lost".to_owned(), words::losses);
            let text = format!("would make an archive of what is whole: {lost}");
            return Ok(Mended::Would { before: self.before.clone(), plan: text });
        }
        let mut replacement = Replacement::new(self.real, plan.size)?;
        plan.write(self.old, replacement.file()).map_err(failed(self.real, "writing what is whole"))?;
        let source = plan.source().to_owned();
        self.put(replacement, plan.size, source, Made::Salvaged(plan.losses))
    }

    /// What of the old file must be in a copy of `size` bytes, byte for byte: where it was cut, all that there is; else all
    /// that lies before the break, or outside of what is known to be damaged.
    fn agreed(&self, size: u64) -> Result<Agreed, String> {
        let cut = self.before.break_point();
        if let Some(fault) = cut.filter(|fault| fault.what.is_cut()) {
            let header = fault.member.as_ref().map_or(fault.position, |member| member.header);
            let lost = self.before.lost.unwrap_or_default();
            if size == self.before.size {
                // Nothing may be missing, and the header that claims more be wrong.
                return Ok(Agreed::before(header.min(size)));
            }
            if size == self.before.whole_until && lost.symbols == 0 {
                // Behind the last member stands what belongs to none.
                return Ok(Agreed::before(size));
            }
            if size < self.before.size || size < lost.size_at_least {
                return Err(format!("it is too small to be a whole copy: {} bytes", words::grouped(size)));
            }
            return Ok(Agreed::before(self.before.size));
        }
        if let Some(fault) = cut {
            return Ok(Agreed::before(fault.position.min(self.before.whole_until).min(size)));
        }
        if size != self.before.size {
            let (found, own) = (words::grouped(size), words::grouped(self.before.size));
            return Err(format!("it is another archive: it has {found} bytes and this one has {own}"));
        }
        if self.before.sound {
            // Where the damage is, only the hash can tell.
            return match self.hash_is_known() {
                true => Ok(Agreed::default()),
                false => Err("Nix does not know its hash, so that no copy can be proven".to_owned()),
            };
        }
        let wrong = self.before.faults.iter().filter(|fault| !fault.what.is_harmless());
        let areas: Option<Vec<_>> = wrong
            .map(|fault| {
                let member = fault.member.as_ref()?;
                let end = member.content.saturating_add(if self.before.thin { 0 } else { member.size });
                Some((member.header, end.saturating_add(1)))
            })
            .collect();
        match areas.filter(|_| self.before.more_faults == 0) {
            Some(areas) => Ok(Agreed::outside(&areas, size)),
            None => Err("too much of the archive is damaged to compare a copy with it".to_owned()),
        }
    }

    /// Whether Nix's book can prove a copy.
    fn hash_is_known(&self) -> bool {
        self.stored.is_some_and(|stored| stored.known.is_ok())
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
        made: Made,
    ) -> Result<Mended, Refused> {
        replacement.finish(self.meta)?;
        let proof = check_for(&replacement.path(), self.real)?;
        if !proof.sound || proof.size != size {
            let wrong = proof.faults.first().map(|fault| words::fault_text(fault, proof.size));
            let wrong = wrong.unwrap_or_else(|| "it changed while it was copied".to_owned());
            return Err(Refused::Because(format!(
                "{source}: with it the archive would not be sound: {wrong}"
            )));
        }
        if self.before.sound
            && nar::file_hash(self.old).ok() == nar::file_hash(&check::open(&replacement.path())?).ok()
        {
            return Err(Refused::Because(format!(
                "{source}: it has the very bytes that are there: the damage is elsewhere in the store path"
            )));
        }
        let mut notices = Vec::new();
        let (salvaged, losses) = match made {
            Made::Whole => (false, None),
            Made::Salvaged(losses) => (true, losses),
        };
        self.prove_hash(&replacement, &source, salvaged, &mut notices)?;
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
        let Some(stored) = self.stored else { return Ok(()) };
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
        // Nothing but the hash could tell that this one is damaged: then nothing else can prove a copy of it.
        if broken == 0 || self.before.sound {
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

fn equal_in(agreed: &Agreed) -> String {
    match agreed.ranges() {
        [] => "proven by its hash alone".to_owned(),
        [(0, until)] => format!("equal in the first {} bytes", words::grouped(*until)),
        _ => format!("equal in the {} bytes that are whole", words::grouped(agreed.bytes())),
    }
}

fn refusal(compare: &Compare<'_>, shown: &str, why: String) -> Refused {
    Refused::Because(match compare.difference {
        Some(position) => format!(
            "{shown}: it is another archive: the first difference is at position {}",
            words::grouped(position)
        ),
        None if why.starts_with(shown) => why,
        None => format!("{shown}: {why}"),
    })
}

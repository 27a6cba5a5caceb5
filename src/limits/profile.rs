//! The memory of a job over time: bounded, whatever the job takes.
//!
//! When there are too many points, each two become one that has the larger values, and points come half as often.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::size::Size;
use super::watch::Proof;

/// Points that are kept.
const POINTS_AT_MOST: usize = 1024;
/// Programs that are told apart; those behind go into the last, `other`.
const PROGRAMS_AT_MOST: usize = 10;
/// Steps that are told.
const STEPS_AT_MOST: usize = 500;
/// What is marked, such as killed processes.
const MARKS_AT_MOST: usize = 20;

/// What a job used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Profile {
    /// The host's memory in bytes.
    pub host: Option<u64>,
    /// The kernel's limit for the job in bytes.
    pub cap: Option<u64>,
    /// GHC's ceiling in bytes.
    pub ceiling: Option<u64>,
    /// Programs in the order in which [`Point::resident`] counts them.
    pub programs: Vec<String>,
    /// The points, each of `merged` samples.
    pub points: Vec<Point>,
    /// Samples that make a point.
    pub merged: u32,
    /// The steps that ran.
    pub steps: Vec<StepUse>,
    /// What happened when.
    pub marks: Vec<Mark>,
    /// What was seen of GHC.
    pub proof: Proof,
    /// The most that all processes had resident at one time, in bytes.
    pub peak: u64,
    /// How long the job has run, in milliseconds.
    pub millis: u64,
    #[serde(skip)]
    pub(super) pending: Vec<Point>,
}

/// A moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Milliseconds since the job began.
    pub at: u64,
    /// Resident bytes of each program.
    pub resident: Vec<u64>,
    /// What the job's control group counts, the cache of files among it.
    pub group: Option<u64>,
}

impl Point {
    /// All programs together, in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.resident.iter().sum()
    }
}

/// A step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepUse {
    /// Its name.
    pub name: String,
    /// Begin, in milliseconds since the job began.
    pub from: u64,
    /// End.
    pub to: u64,
    /// The most that all processes had resident, in bytes.
    pub peak: u64,
    /// The most that one GHC had, in bytes; 0 when none ran.
    pub ghc: u64,
    /// The largest program at the peak, with its bytes.
    pub largest: Option<(String, u64)>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Milliseconds since the job began.
    pub at: u64,
    /// What.
    pub text: String,
}

impl Profile {
    /// Adds a sample: resident bytes by program, and what the group counts.
    pub fn add(&mut self, at: u64, by_program: &[(String, u64)], group: Option<u64>) {
        let mut resident = vec![0; self.programs.len()];
        for (program, bytes) in by_program {
            let index = self.program(program);
            resident.resize(resident.len().max(index + 1), 0);
            resident[index] += bytes;
        }
        let point = Point { at, resident, group };
        let total = point.total();
        self.peak = self.peak.max(total);
        self.millis = self.millis.max(at);
        if let Some(step) = self.steps.last_mut().filter(|step| step.to == 0)
            && total >= step.peak
        {
            step.peak = total;
            let largest = point.resident.iter().enumerate().max_by_key(|(_, bytes)| **bytes);
            step.largest = largest.map(|(index, bytes)| (self.programs[index].clone(), *bytes));
        }
        self.merged = self.merged.max(1);
        self.pending.push(point);
        if self.pending.len() >= self.merged as usize {
            let whole = merge(std::mem::take(&mut self.pending));
            self.points.push(whole);
        }
        if self.points.len() > POINTS_AT_MOST {
            let mut merged = Vec::with_capacity(POINTS_AT_MOST / 2 + 1);
            let mut points = std::mem::take(&mut self.points).into_iter();
            while let Some(first) = points.next() {
                merged.push(merge([first].into_iter().chain(points.next()).collect()));
            }
            self.points = merged;
            self.merged *= 2;
        }
    }

    fn program(&mut self, name: &str) -> usize {
        if let Some(index) = self.programs.iter().position(|known| known == name) {
            return index;
        }
        let name = if self.programs.len() < PROGRAMS_AT_MOST { name } else { "other" };
        self.programs.iter().position(|known| known == name).unwrap_or_else(|| {
            self.programs.push(name.to_owned());
            self.programs.len() - 1
        })
    }

    /// A step begins.
    pub fn step_begins(&mut self, name: &str, at: u64) {
        if self.steps.len() < STEPS_AT_MOST {
            self.steps.push(StepUse { name: name.to_owned(), from: at, ..StepUse::default() });
        }
    }

    /// The step that began last ends; gives it.
    pub fn step_ends(&mut self, at: u64) -> Option<&StepUse> {
        self.millis = self.millis.max(at);
        let step = self.steps.last_mut().filter(|step| step.to == 0)?;
        step.to = at.max(step.from + 1);
        Some(step)
    }

    /// Marks what happens now.
    pub fn mark(&mut self, at: u64, text: &str) {
        if self.marks.len() < MARKS_AT_MOST {
            self.marks.push(Mark { at, text: text.to_owned() });
        }
    }

    /// A small picture of the memory between two moments, scaled to its own peak.
    #[must_use]
    pub fn sparkline(&self, from: u64, to: u64) -> String {
        const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        const WIDTH: usize = 24;
        let points: Vec<u64> = self
            .points
            .iter()
            .chain(&self.pending)
            .filter(|point| (from..=to).contains(&point.at))
            .map(Point::total)
            .collect();
        let Some(most) = points.iter().copied().max().filter(|most| *most > 0) else { return String::new() };
        let width = points.len().min(WIDTH);
        (0..width)
            .map(|index| {
                let range = index * points.len() / width..((index + 1) * points.len() / width).max(1);
                let highest = points[range].iter().copied().max().unwrap_or(0);
                BARS[usize::try_from(highest * 7 / most).unwrap_or(0).min(7)]
            })
            .collect()
    }

    /// One line about a step.
    #[must_use]
    pub fn step_line(&self, step: &StepUse) -> String {
        let mut line = format!("Memory: peak {}", Size(step.peak));
        let of = self.cap.map(|cap| (cap, "the limit")).or(self.host.map(|host| (host, "the host")));
        if let Some((whole, what)) = of {
            line.push_str(&format!(" ({} % of {what})", percent(step.peak, whole)));
        }
        let picture = self.sparkline(step.from, step.to);
        if picture.chars().count() > 1 {
            line.push_str(&format!(" {picture}"));
        }
        if step.ghc > 0 {
            let of =
                self.ceiling.map(|ceiling| format!(" (heap ceiling {})", Size(ceiling))).unwrap_or_default();
            line.push_str(&format!(", ghc {}{of}", Size(step.ghc)));
        } else if let Some((program, bytes)) = &step.largest {
            line.push_str(&format!(", most of it {program} {}", Size(*bytes)));
        }
        line
    }

    /// Reads what [`Profile::write`] wrote.
    ///
    /// # Errors
    /// When it cannot be read or is no profile.
    pub fn read(path: &Path) -> std::io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let unfinished = path.with_extension("new");
        std::fs::write(&unfinished, serde_json::to_vec(self)?)?;
        std::fs::rename(&unfinished, path)
    }
}

/// A share in whole percent.
#[must_use]
pub fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100) / whole.max(1)
}

fn merge(points: Vec<Point>) -> Point {
    let mut whole = Point::default();
    let mut most = 0;
    for point in points {
        whole.group = whole.group.max(point.group);
        whole.at = point.at;
        // One moment as it was: the largest, so that a stack never shows more than there was at one time.
        if point.total() >= most {
            most = point.total();
            whole.resident = point.resident;
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_job_takes_no_more_room_and_loses_no_peak() {
        let mut profile = Profile::default();
        profile.step_begins("build", 0);
        for at in 0..100_000_u64 {
            let bytes = if at == 54_321 { 9 << 30 } else { 1 << 20 };
            profile.add(at * 500, &[("ghc".to_owned(), bytes), (format!("p{}", at % 300), 1)], Some(bytes));
        }
        assert!(profile.points.len() <= POINTS_AT_MOST && profile.programs.len() <= PROGRAMS_AT_MOST + 1);
        assert_eq!(profile.points.iter().map(Point::total).max(), Some((9 << 30) + 1));
        let step = profile.step_ends(50_000_000).unwrap().clone();
        assert_eq!(step.peak, (9 << 30) + 1);
        assert_eq!(step.largest, Some(("ghc".to_owned(), 9 << 30)));
        assert!(serde_json::to_vec(&profile).unwrap().len() < 300_000);
    }

    #[test]
    fn a_step_is_told_in_one_line() {
        let mut profile = Profile { host: Some(4 << 30), ceiling: Some(2 << 30), ..Profile::default() };
        profile.step_begins("build", 0);
        for (at, mebibytes) in [(500, 100), (1000, 900), (1500, 1800), (2000, 600)] {
            profile.add(at, &[("ghc".to_owned(), mebibytes << 20)], None);
        }
        profile.steps[0].ghc = 1800 << 20;
        let step = profile.step_ends(2100).unwrap().clone();
        insta::assert_snapshot!(profile.step_line(&step), @"Memory: peak 1.76 GiB (43 % of the host) ▁▄█▃, ghc 1.76 GiB (heap ceiling 2 GiB)");
        assert_eq!(profile.sparkline(5000, 6000), "");
    }
}

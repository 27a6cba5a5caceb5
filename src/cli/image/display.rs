//! Progress on a terminal, one line per layer elsewhere; all of it on stderr.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::image::push::Event;

/// Bytes of the source read so far.
#[derive(Default)]
struct Count {
    done: u64,
    /// By layer: a layer that is read again begins anew.
    active: HashMap<usize, Arc<AtomicU64>>,
}

impl Count {
    fn total(&self) -> u64 {
        self.done + self.active.values().map(|read| read.load(Ordering::Relaxed)).sum::<u64>()
    }
}

/// What a push shows.
pub(super) struct Display {
    quiet: bool,
    bar: Option<ProgressBar>,
    count: Arc<Mutex<Count>>,
}

impl Display {
    pub(super) fn new(json: bool) -> Self {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::no_length);
        let display = Self { quiet: json && bar.is_none(), bar, count: Arc::default() };
        if let Some(bar) = &display.bar {
            let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            let (bar, count) = (bar.downgrade(), Arc::downgrade(&display.count));
            // Ends when the display is gone.
            std::thread::spawn(move || {
                while let (Some(bar), Some(count)) = (bar.upgrade(), count.upgrade()) {
                    bar.set_position(count.lock().unwrap_or_else(PoisonError::into_inner).total());
                    drop((bar, count));
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
        }
        display
    }

    /// Tells notes.
    pub(super) fn note(&self) -> Box<dyn Fn(&str)> {
        let bar = self.bar.clone();
        Box::new(move |text| say(bar.as_ref(), &format!("note: {text}")))
    }

    pub(super) fn show(&self, event: &Event<'_>) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Begin { total } => {
                if let Some(bar) = &self.bar {
                    bar.set_length(*total);
                }
            }
            Event::Reading { index, read } => {
                count.active.insert(*index, Arc::clone(read));
            }
            Event::Done { index, of, layer } => {
                if let Some(read) = count.active.remove(index) {
                    count.done += read.load(Ordering::Relaxed);
                }
                drop(count);
                if !self.quiet {
                    let of = of.map_or(String::new(), |of| format!("/{of}"));
                    say(self.bar.as_ref(), &format!("layer {}{of}  {}", index + 1, layer.line()));
                }
            }
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn say(bar: Option<&ProgressBar>, line: &str) {
    match bar {
        Some(bar) => bar.suspend(|| eprintln!("{line}")),
        None => eprintln!("{line}"),
    }
}

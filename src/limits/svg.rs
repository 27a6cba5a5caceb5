//! What a job used, as a picture: memory by program over time, the steps as bands, ceiling and limit as lines, what
//! was killed as marks.

use std::fmt::Write as _;

use super::profile::{Point, Profile};
use super::report;
use super::size::Size;

const WIDTH: f64 = 1100.0;
const HEIGHT: f64 = 548.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 92.0;
const BOTTOM: f64 = 112.0;
/// The first line of the legend.
const LEGEND: f64 = HEIGHT - BOTTOM + 66.0;
/// Colours of programs, told apart by the colour-blind too (after Okabe and Ito).
const COLOURS: [&str; 11] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8c6bb1", "#7f7f7f",
    "#a6761d", "#bdbdbd",
];

/// Draws a profile.
#[must_use]
pub fn draw(profile: &Profile, title: &str) -> String {
    Picture::new(profile).draw(title)
}

struct Picture<'p> {
    profile: &'p Profile,
    millis: f64,
    top: f64,
}

impl<'p> Picture<'p> {
    fn new(profile: &'p Profile) -> Self {
        let group = profile.points.iter().filter_map(|point| point.group).max().unwrap_or(0);
        let most = profile.peak.max(group).max(1 << 20);
        // Lines far above all values would press them flat; they are named below the title instead.
        let lines = [profile.ceiling, profile.cap]
            .into_iter()
            .flatten()
            .filter(|line| *line <= most.saturating_mul(6));
        let top = lines.chain([most]).max().unwrap_or(most);
        Self { profile, millis: profile.millis.max(1000) as f64, top: top as f64 * 1.08 }
    }

    fn x(&self, millis: u64) -> f64 {
        LEFT + (millis as f64 / self.millis).min(1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, bytes: f64) -> f64 {
        HEIGHT - BOTTOM - (bytes / self.top).min(1.0) * (HEIGHT - TOP - BOTTOM)
    }

    fn draw(&self, title: &str) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\" font-size=\"12\">\n\
             <style>.bg{{fill:#fff}}.fg{{fill:#24292f}}.dim{{fill:#6e7781}}.grid{{stroke:#d0d7de;stroke-width:1}}.band{{fill:#f3f5f7}}.halo{{paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}}\
             @media (prefers-color-scheme:dark){{.bg{{fill:#0d1117}}.fg{{fill:#e6edf3}}.dim{{fill:#8b949e}}.grid{{stroke:#30363d}}.band{{fill:#161b22}}.halo{{stroke:#0d1117}}}}</style>\n\
             <rect class=\"bg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"6\"/>\n"
        );
        let profile = self.profile;
        let mut facts = vec![format!("peak {}", Size(profile.peak)), report::time(profile.millis)];
        facts.extend(profile.host.map(|host| format!("host {}", Size(host))));
        let above = |line: Option<u64>| line.filter(|line| *line as f64 >= self.top);
        facts.extend(
            above(profile.ceiling).map(|line| format!("GHC ceiling {} (above this picture)", Size(line))),
        );
        facts.extend(
            above(profile.cap).map(|line| format!("limit of the job {} (above this picture)", Size(line))),
        );
        let _ = writeln!(
            svg,
            "<text class=\"fg\" x=\"{LEFT}\" y=\"28\" font-size=\"17\" font-weight=\"600\">{}</text>\n\
             <text class=\"dim\" x=\"{LEFT}\" y=\"47\">{}</text>",
            escape(title, 90),
            escape(&facts.join("  ·  "), 120)
        );
        self.bands(&mut svg);
        self.axes(&mut svg);
        self.captions(&mut svg);
        self.stack(&mut svg);
        self.lines(&mut svg);
        self.marks(&mut svg);
        self.legend(&mut svg);
        svg.push_str("</svg>\n");
        svg
    }

    /// The steps, every other one shaded, with their names where there is room.
    fn bands(&self, svg: &mut String) {
        let bottom = HEIGHT - BOTTOM;
        for (index, step) in self.profile.steps.iter().enumerate() {
            let to = if step.to == 0 { self.profile.millis } else { step.to };
            let (from, to) = (self.x(step.from), self.x(to));
            let shade = if index % 2 == 0 { "band" } else { "bg" };
            let _ = writeln!(
                svg,
                "<rect class=\"{shade}\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                (to - from).max(0.5),
                bottom - TOP,
                escape(&step.name, 120)
            );
            let room = ((to - from) / 6.6) as usize;
            // A narrower one is named by its tooltip only.
            if room >= 7 {
                let _ = writeln!(
                    svg,
                    "<text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                    f64::midpoint(from, to),
                    bottom + 36.0,
                    escape(&step.name, room)
                );
            }
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{from:.1}\" x2=\"{from:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
                bottom,
                bottom + 40.0
            );
        }
    }

    fn axes(&self, svg: &mut String) {
        let bottom = HEIGHT - BOTTOM;
        let step = round_step(self.top / 5.0);
        let mut value = 0.0;
        while value <= self.top {
            let y = self.y(value);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\n\
                 <text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                y + 4.0,
                Size(value as u64)
            );
            value += step;
        }
        let step = time_step(self.millis);
        let mut millis = 0;
        while millis as f64 <= self.millis {
            // The last one must not run out of the picture.
            let anchor = if self.x(millis) > WIDTH - RIGHT - 20.0 { "end" } else { "middle" };
            let _ = writeln!(
                svg,
                "<text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                self.x(millis),
                bottom + 17.0,
                tick(millis)
            );
            millis += step;
        }
    }

    /// What the axes, the names of the steps and the legend are about, in the margin before each.
    fn captions(&self, svg: &mut String) {
        let bottom = HEIGHT - BOTTOM;
        let mut captions = vec![(TOP - 10.0, "resident"), (bottom + 17.0, "time")];
        if !self.profile.steps.is_empty() {
            captions.push((bottom + 36.0, "step"));
        }
        if !self.profile.programs.is_empty() {
            captions.push((LEGEND, "peak of"));
        }
        for (y, caption) in captions {
            let _ = writeln!(
                svg,
                "<text class=\"dim\" x=\"{:.1}\" y=\"{y:.1}\" text-anchor=\"end\" font-style=\"italic\">{caption}</text>",
                LEFT - 14.0
            );
        }
    }

    /// Memory by program, one on the other.
    fn stack(&self, svg: &mut String) {
        let points = &self.profile.points;
        let mut below: Vec<f64> = vec![0.0; points.len()];
        for program in 0..self.profile.programs.len() {
            let above: Vec<f64> = points
                .iter()
                .zip(&below)
                .map(|(point, below)| below + point.resident.get(program).copied().unwrap_or(0) as f64)
                .collect();
            let mut path = String::new();
            for (index, (point, value)) in points.iter().zip(&above).enumerate() {
                let letter = if index == 0 { 'M' } else { 'L' };
                let _ = write!(path, "{letter}{:.1} {:.1}", self.x(point.at), self.y(*value));
            }
            for (point, value) in points.iter().zip(&below).rev() {
                let _ = write!(path, "L{:.1} {:.1}", self.x(point.at), self.y(*value));
            }
            if !points.is_empty() {
                let _ = writeln!(
                    svg,
                    "<path d=\"{path}Z\" fill=\"{}\" fill-opacity=\"0.85\"><title>{}</title></path>",
                    colour(program),
                    escape(&self.profile.programs[program], 40)
                );
            }
            below = above;
        }
    }

    fn lines(&self, svg: &mut String) {
        let group: Vec<&Point> = self.profile.points.iter().filter(|point| point.group.is_some()).collect();
        if group.len() > 1 {
            let path: Vec<String> = group
                .iter()
                .map(|point| {
                    format!("{:.1},{:.1}", self.x(point.at), self.y(point.group.unwrap_or(0) as f64))
                })
                .collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"#6e7781\" stroke-width=\"1.5\" stroke-dasharray=\"2 3\"><title>control group, with the cache of files</title></polyline>",
                path.join(" ")
            );
        }
        for (value, name, colour) in [
            (self.profile.ceiling, "GHC ceiling", "#8250df"),
            (self.profile.cap, "limit of the job", "#cf222e"),
        ] {
            let Some(value) = value.filter(|value| (*value as f64) < self.top) else { continue };
            let y = self.y(value as f64);
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{0:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" stroke-width=\"1.6\" stroke-dasharray=\"7 4\"/>\n\
                 <text class=\"halo\" x=\"{1:.1}\" y=\"{2:.1}\" fill=\"{colour}\" font-weight=\"600\">{name} {3}</text>",
                WIDTH - RIGHT,
                LEFT + 6.0,
                y - 5.0,
                Size(value)
            );
        }
    }

    /// What happened, as flags above the plot; those that would stand on others go down into it.
    fn marks(&self, svg: &mut String) {
        let mut taken: Vec<(f64, f64)> = Vec::new();
        let mut down = 0.0;
        for mark in &self.profile.marks {
            let x = self.x(mark.at);
            let text = escape(&mark.text, 80);
            let width = mark.text.chars().count().min(80) as f64 * 7.2 + 16.0;
            let left = x > WIDTH / 2.0;
            let span = if left { (x - width, x) } else { (x, x + width) };
            let free = taken.iter().all(|(from, to)| span.1 < *from || span.0 > *to);
            let y = if free {
                taken.push(span);
                TOP - 12.0
            } else {
                down += 17.0;
                TOP - 2.0 + down
            };
            let (anchor, beside) = if left { ("end", -9.0) } else { ("start", 9.0) };
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#cf222e\" stroke-width=\"1.4\"/>\n\
                 <circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"5\" fill=\"#cf222e\"/>\n\
                 <text class=\"halo\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"#cf222e\" font-weight=\"600\">{text}</text>",
                (y - 4.0).min(TOP),
                HEIGHT - BOTTOM,
                y - 4.0,
                x + beside,
                y,
            );
        }
    }

    fn legend(&self, svg: &mut String) {
        let mut x = LEFT;
        let mut y = LEGEND;
        for (program, name) in self.profile.programs.iter().enumerate() {
            let peak = self.profile.points.iter().filter_map(|point| point.resident.get(program)).max();
            let text = format!("{name} {}", Size(peak.copied().unwrap_or(0)));
            let width = 26.0 + text.chars().count() as f64 * 6.8;
            if x + width > WIDTH - RIGHT {
                x = LEFT;
                y += 19.0;
            }
            if y > HEIGHT - 8.0 {
                return;
            }
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"11\" height=\"11\" rx=\"2\" fill=\"{}\"/>\n\
                 <text class=\"fg\" x=\"{:.1}\" y=\"{y:.1}\">{}</text>",
                y - 10.0,
                colour(program),
                x + 16.0,
                escape(&text, 50)
            );
            x += width;
        }
        if self.profile.points.iter().any(|point| point.group.is_some()) {
            if x + 230.0 > WIDTH - RIGHT {
                (x, y) = (LEFT, y + 19.0);
            }
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" x2=\"{:.1}\" y1=\"{2:.1}\" y2=\"{2:.1}\" stroke=\"#6e7781\" stroke-width=\"1.5\" stroke-dasharray=\"2 3\"/>\n\
                 <text class=\"fg\" x=\"{:.1}\" y=\"{y:.1}\">control group, with cached files</text>",
                x + 18.0,
                x + 24.0,
                y - 4.0,
            );
        }
    }
}

/// Milliseconds between two ticks: round, and at most ten of them.
fn time_step(millis: f64) -> u64 {
    const SECONDS: [u64; 19] =
        [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 604_800];
    let fitting = SECONDS.into_iter().find(|seconds| millis / (seconds * 1000) as f64 <= 9.0);
    fitting.unwrap_or_else(|| (millis / 9000.0) as u64 + 1) * 1000
}

/// A moment of the axis.
fn tick(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0 => "0".to_owned(),
        1..60 => format!("{seconds} s"),
        60..3600 if seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        60..3600 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        _ if seconds.is_multiple_of(3600) => format!("{} h", seconds / 3600),
        _ => format!("{}:{:02} h", seconds / 3600, seconds / 60 % 60),
    }
}

fn colour(program: usize) -> &'static str {
    COLOURS[program % COLOURS.len()]
}

/// A power of two, or three quarters of one, near a number of bytes.
fn round_step(about: f64) -> f64 {
    let power = about.max(1.0).log2().floor().exp2();
    if about > power * 1.5 { power * 2.0 } else { power }
}

/// Text of a document, cut with an ellipsis.
fn escape(text: &str, most: usize) -> String {
    let mut short: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(most).collect();
    if text.chars().count() > most {
        short.pop();
        short.push('…');
    }
    short.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_text_and_numbers_stay_in_the_picture() {
        let mut profile = Profile { ceiling: Some(u64::MAX), cap: Some(1 << 30), ..Profile::default() };
        profile.step_begins("<script>alert(1)</script>", 0);
        for at in 0..200 {
            profile.add(at * 500, &[("a\"<b>&".to_owned(), at << 22)], Some(at << 22));
        }
        profile.mark(50_000, "out of memory: </svg> killed");
        let _ = profile.step_ends(100_000);
        let svg = draw(&profile, "<job> & more");
        assert!(!svg.contains("<script") && !svg.contains("<b>") && svg.matches("</svg>").count() == 1);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(svg.contains("limit of the job 1 GiB</text>") && svg.contains("(above this picture)"));
        assert!(draw(&Profile::default(), "").ends_with("</svg>\n"));
        assert_eq!(
            (time_step(11_000.0), time_step(1_048_500.0), time_step(1e12)),
            (2000, 120_000, 111_111_112_000)
        );
        assert_eq!(
            [0, 7000, 90_000, 120_000, 5_400_000].map(tick),
            ["0", "7 s", "1:30 min", "2 min", "1:30 h"]
        );
    }
}

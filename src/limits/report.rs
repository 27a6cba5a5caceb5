//! What a job used, as Markdown for its summary: a table of the steps and a chart that Gitea draws (Mermaid).

use super::profile::{Profile, StepUse, percent};
use super::size::Size;

/// Points of the chart: more make its text long and its lines no better.
const CHART_POINTS: usize = 60;
/// Colours of the chart's lines.
const MEMORY: &str = "#0072b2";
const CEILING: &str = "#8250df";
const CAP: &str = "#cf222e";
/// Steps in the table.
const ROWS: usize = 50;

/// The table and the chart.
#[must_use]
pub fn markdown(profile: &Profile) -> String {
    let mut text = String::from("### Memory\n\n");
    let ghc = profile.steps.iter().any(|step| step.ghc > 0);
    let whole = profile.cap.or(profile.host);
    let of = if profile.cap.is_some() { "Of the limit" } else { "Of the host" };
    text.push_str(&format!(
        "| Step | Peak RSS |{} {of} | Largest | Time |\n",
        if ghc { " Peak of GHC | Ceiling |" } else { "" }
    ));
    text.push_str(&format!(
        "| --- | ---: |{} ---: | --- | ---: |\n",
        if ghc { " ---: | ---: |" } else { "" }
    ));
    for step in profile.steps.iter().take(ROWS) {
        text.push_str(&row(profile, step, ghc, whole));
    }
    if profile.steps.len() > ROWS {
        text.push_str(&format!("\n{} more steps.\n", profile.steps.len() - ROWS));
    }
    if profile.proof.runs > 0 {
        text.push_str(&format!("\n{}.\n", escape(&profile.proof.line())));
    }
    if let Some(chart) = chart(profile) {
        text.push_str(&format!("\n{chart}"));
    }
    text
}

fn row(profile: &Profile, step: &StepUse, ghc: bool, whole: Option<u64>) -> String {
    let mut row = format!("| {} | {} |", escape(&step.name), size(step.peak));
    if ghc {
        let ceiling = profile.ceiling.filter(|_| step.ghc > 0);
        row.push_str(&format!(
            " {} | {} |",
            size(step.ghc),
            ceiling.map_or_else(String::new, |c| Size(c).to_string())
        ));
    }
    let share = whole.filter(|_| step.peak > 0).map(|whole| format!("{} %", percent(step.peak, whole)));
    let largest = step.largest.as_ref().map(|(name, bytes)| format!("{} {}", escape(name), Size(*bytes)));
    row.push_str(&format!(
        " {} | {} | {} |\n",
        share.unwrap_or_default(),
        largest.unwrap_or_default(),
        time(step.to.saturating_sub(step.from))
    ));
    row
}

fn size(bytes: u64) -> String {
    if bytes == 0 { String::new() } else { Size(bytes).to_string() }
}

/// Milliseconds for people.
#[must_use]
pub fn time(millis: u64) -> String {
    match millis {
        0..10_000 => format!("{}.{} s", millis / 1000, millis % 1000 / 100),
        10_000..60_000 => format!("{} s", millis / 1000),
        60_000..3_600_000 => format!("{} min {:02} s", millis / 60_000, millis / 1000 % 60),
        _ => format!("{} h {:02} min", millis / 3_600_000, millis / 60_000 % 60),
    }
}

/// A cell of a table.
fn escape(text: &str) -> String {
    text.chars()
        .take(120)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>()
        .replace('|', "\\|")
}

/// The memory over time; `None` where there is too little to draw.
fn chart(profile: &Profile) -> Option<String> {
    let points = &profile.points;
    if points.len() < 3 {
        return None;
    }
    let count = points.len().min(CHART_POINTS);
    let mebibytes = |bytes: u64| (bytes >> 20).to_string();
    let values: Vec<String> = (0..count)
        .map(|index| {
            let range = index * points.len() / count..(index + 1) * points.len() / count;
            mebibytes(points[range].iter().map(super::profile::Point::total).max().unwrap_or(0))
        })
        .collect();
    let lines = [
        (profile.ceiling.filter(|_| profile.proof.runs > 0), CEILING, "violet", "GHC's heap ceiling"),
        (profile.cap, CAP, "red", "the limit of the job"),
    ];
    // A line far above all values would press them flat.
    let lines: Vec<_> = lines
        .into_iter()
        .filter_map(|(value, colour, said, name)| Some((value?, colour, said, name)))
        .filter(|(value, ..)| *value <= profile.peak.saturating_mul(8))
        .collect();
    let top = lines.iter().map(|(value, ..)| *value).chain([profile.peak]).max().unwrap_or(0) / 20 * 21;
    let seconds = points.last().map_or(0, |point| point.at) / 1000;
    // The chart's own first colour can hardly be seen on white.
    let palette: Vec<&str> =
        [MEMORY].into_iter().chain(lines.iter().map(|(_, colour, ..)| *colour)).collect();
    let mut text = format!(
        "```mermaid\n%%{{init: {{\"themeVariables\": {{\"xyChart\": {{\"plotColorPalette\": \"{}\"}}}}}}}}%%\nxychart-beta\n  title \"Memory of the job\"\n",
        palette.join(", ")
    );
    text.push_str(&format!("  x-axis \"seconds\" 0 --> {}\n", seconds.max(1)));
    text.push_str(&format!("  y-axis \"MiB\" 0 --> {}\n", (top >> 20).max(1)));
    text.push_str(&format!("  line [{}]\n", values.join(", ")));
    for (value, ..) in &lines {
        let line = vec![mebibytes(*value); count];
        text.push_str(&format!("  line [{}]\n", line.join(", ")));
    }
    text.push_str("```\n");
    if !lines.is_empty() {
        // A chart of this kind has no legend.
        let names: Vec<String> =
            lines.iter().map(|(value, _, said, name)| format!("{said}: {name}, {}", Size(*value))).collect();
        text.push_str(&format!("\nBlue: all processes; {}.\n", names.join("; ")));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_a_table_and_a_chart() {
        let mut profile =
            Profile { host: Some(4 << 30), ceiling: Some(2 << 30), cap: Some(3 << 30), ..Profile::default() };
        profile.step_begins("Build | all", 0);
        for (at, mebibytes) in [(0, 10), (500, 900), (1000, 1024), (1500, 1800), (2000, 512)] {
            profile.add(at, &[("ghc".to_owned(), mebibytes << 20), ("sh".to_owned(), 1 << 20)], None);
        }
        profile.steps[0].ghc = 1800 << 20;
        profile.proof.runs = 1;
        profile.proof.by_heap.insert(Some(2 << 30), 1);
        let _ = profile.step_ends(2100);
        insta::assert_snapshot!(markdown(&profile), @r##"
        ### Memory

        | Step | Peak RSS | Peak of GHC | Ceiling | Of the limit | Largest | Time |
        | --- | ---: | ---: | ---: | ---: | --- | ---: |
        | Build \| all | 1.76 GiB | 1.76 GiB | 2 GiB | 58 % | ghc 1.76 GiB | 2.1 s |

        GHC ran 1 time; heap ceiling in force: 2 GiB in 1 of 1, peak RSS 0 B.

        ```mermaid
        %%{init: {"themeVariables": {"xyChart": {"plotColorPalette": "#0072b2, #8250df, #cf222e"}}}}%%
        xychart-beta
          title "Memory of the job"
          x-axis "seconds" 0 --> 2
          y-axis "MiB" 0 --> 3225
          line [11, 901, 1025, 1801, 513]
          line [2048, 2048, 2048, 2048, 2048]
          line [3072, 3072, 3072, 3072, 3072]
        ```

        Blue: all processes; violet: GHC's heap ceiling, 2 GiB; red: the limit of the job, 3 GiB.
        "##);
    }
}

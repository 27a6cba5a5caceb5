//! What would run, drawn: a row of boxes for each stage, below those that it waits for.

use std::collections::HashMap;

use indexmap::IndexMap;

use super::context::Context;
use super::plan::{Instance, Plan, Selection};

/// How wide a drawing may get before a stage goes on in the next row.
const WIDTH: usize = 100;

/// The graph of every workflow of the plan.
#[must_use]
pub fn draw(plan: &Plan, context: &Context, selection: &Selection) -> String {
    let mut text = String::new();
    for (number, instance) in plan.instances.iter().enumerate() {
        if number > 0 {
            text.push('\n');
        }
        text.push_str(&instance.file.name);
        text.push('\n');
        for (stage, jobs) in stages(instance).into_iter().enumerate() {
            if stage > 0 {
                text.push_str("    │\n    ▼\n");
            }
            let titles = jobs.iter().map(|id| {
                let count = instance
                    .runs(context, selection, id, &IndexMap::new())
                    .map_or_else(|_| "× ?".to_owned(), |runs| format!("× {}", runs.len()));
                let count = if count == "× 1" { String::new() } else { format!(" {count}") };
                let job = instance.job(id);
                let needs: Vec<&str> = job.needs.iter().map(|need| need.value.as_str()).collect();
                let needs =
                    if needs.is_empty() { String::new() } else { format!(" ← {}", needs.join(", ")) };
                format!("{id}{count}{needs}")
            });
            rows(titles.collect(), &mut text);
        }
    }
    text
}

/// The jobs by how many others must end one after the other before they begin.
fn stages(instance: &Instance) -> Vec<Vec<&str>> {
    let mut depth: HashMap<&str, usize> = HashMap::new();
    let mut stages: Vec<Vec<&str>> = Vec::new();
    // In the order of the plan, what a job needs comes before it.
    for id in &instance.jobs {
        let needs = &instance.job(id).needs;
        let stage =
            needs.iter().filter_map(|need| depth.get(need.value.as_str())).map(|d| d + 1).max().unwrap_or(0);
        depth.insert(id, stage);
        stages.resize_with(stages.len().max(stage + 1), Vec::new);
        stages[stage].push(id);
    }
    stages
}

fn rows(titles: Vec<String>, text: &mut String) {
    let mut row: Vec<String> = Vec::new();
    let mut width = 0;
    for title in titles {
        let wide = title.chars().count() + 5;
        if width + wide > WIDTH && !row.is_empty() {
            boxes(&std::mem::take(&mut row), text);
            width = 0;
        }
        width += wide;
        row.push(title);
    }
    boxes(&row, text);
}

fn boxes(titles: &[String], text: &mut String) {
    let line = |title: &String| "─".repeat(title.chars().count() + 2);
    let joined = |each: &dyn Fn(&String) -> String| titles.iter().map(each).collect::<Vec<_>>().join(" ");
    for row in [
        joined(&|title| format!("╭{}╮", line(title))),
        joined(&|title| format!("│ {title} │")),
        joined(&|title| format!("╰{}╯", line(title))),
    ] {
        text.push_str(&format!(" {row}\n"));
    }
}

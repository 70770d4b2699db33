//! Verdicts of `lint` as text: by rule, what is wrong, where and what to do.

use super::terminal::table;
use crate::error::{show_line, show_name, show_text};
use crate::lint::{LintReport, NodeVerdict, Verdict};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Nodes that are named for each rule, unless all are asked for.
const NAMED: usize = 5;

/// What `lint` prints.
pub fn lint(report: &LintReport, all: bool) -> String {
    let mut text = String::new();
    if all && !report.nodes.is_empty() {
        let mut rows = vec![["node", "operator", "verdict", "kernel", "rules"].map(String::from).to_vec()];
        rows.extend(report.nodes.iter().map(row));
        text += &table(&rows, &[]);
        text.push('\n');
    }
    for failing in [true, false] {
        let mut by_rule: BTreeMap<(&str, &str), Vec<(&NodeVerdict, &str)>> = BTreeMap::new();
        for node in report.nodes.iter().filter(|node| (node.fails() || node.verdict == Verdict::Inexact) == failing) {
            for finding in &node.findings {
                by_rule.entry((finding.rule, finding.fix)).or_default().push((node, &finding.found));
            }
        }
        for ((rule, fix), nodes) in by_rule {
            let kind = if failing { "" } else { "note: " };
            let _ = writeln!(text, "{kind}{rule}: {} of {} nodes: {fix}", nodes.len(), report.nodes.len());
            let shown = if all { nodes.len() } else { NAMED };
            for (node, found) in nodes.iter().take(shown) {
                let _ = writeln!(text, "  {} ({}): {}", show_name(&node.node), show_text(&node.op), show_line(found));
            }
            if nodes.len() > shown {
                let _ = writeln!(text, "  and {} more", nodes.len() - shown);
            }
        }
    }
    let total = &report.total;
    let _ = write!(text, "{}: {} nodes compute in integers, {} in float", report.target, total.integer + total.inexact, total.float);
    let _ = writeln!(text, ", {} are quantized in vain", total.failed);
    text
}

fn row(node: &NodeVerdict) -> Vec<String> {
    let rules: Vec<&str> = node.findings.iter().map(|finding| finding.rule).collect();
    let kernel = node.kernel.clone().unwrap_or_default();
    let (op, kernel) = (show_text(&node.op).to_string(), show_text(&kernel).to_string());
    vec![show_name(&node.node).to_string(), op, verdict(node.verdict).into(), kernel, rules.join(", ")]
}

/// A verdict in one word.
pub(super) fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Integer => "integer",
        Verdict::Inexact => "inexact",
        Verdict::Float => "float",
        Verdict::Unfused => "unfused",
        Verdict::Refused => "refused",
    }
}

/// The line of an error: how many nodes fail, and the first.
pub fn failure(report: &LintReport, first: &NodeVerdict) -> String {
    let rules: Vec<&str> = first.findings.iter().map(|finding| finding.rule).collect();
    let (count, target) = (report.total.failed, &report.target);
    format!("{count} nodes are quantized in vain for {target}, first {}: {}", show_name(&first.node), rules.join(", "))
}

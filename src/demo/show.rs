//! What the demo prints: steps, a live table on a terminal, plain lines elsewhere, nothing with `--json`.

use std::io::IsTerminal;
use std::time::Duration;

use spp_pipeline::status::NodeStatus;

use super::Outcome;
use super::ledger::Ledger;
use crate::fail::Failure;
use crate::{output, status};

/// How to print.
pub enum View {
    /// Not at all: the result object is all.
    Silent,
    /// One line a second, the table at the end.
    Lines,
    /// The table, drawn again each second; how many lines it had.
    Table(usize),
}

impl View {
    /// By where stdout goes.
    pub fn choose(json: bool) -> View {
        match (json, std::io::stdout().is_terminal()) {
            (true, _) => View::Silent,
            (false, true) => View::Table(0),
            (false, false) => View::Lines,
        }
    }

    /// Something is being built.
    pub fn step(&mut self, what: &str) -> Result<(), Failure> {
        if matches!(self, View::Silent) { Ok(()) } else { output::line(&format!("- {what}")) }
    }

    /// A second has passed.
    pub fn tick(
        &mut self,
        ledger: &Ledger,
        elapsed: Duration,
        node: &NodeStatus,
        since: status::Since,
    ) -> Result<(), Failure> {
        match self {
            View::Silent => Ok(()),
            View::Lines => output::line(&one_line(ledger, elapsed)),
            View::Table(n_lines) => {
                let table =
                    format!("\n{}\n\n{}", one_line(ledger, elapsed), status::vf_text(node, 0, Some(since)));
                // Up to where the last table began, and clear from there on.
                let back = if *n_lines > 0 { format!("\x1b[{n_lines}A\x1b[J") } else { String::new() };
                *n_lines = table.lines().count();
                output::line(&format!("{back}{table}"))
            }
        }
    }

    /// The end.
    pub fn outcome(&self, outcome: &Outcome) -> Result<(), Failure> {
        let mut rows =
            vec![["from", "to", "tag sent", "tag received", "sent", "received"].map(str::to_owned).to_vec()];
        let tag = |vlan: Option<u16>| vlan.map_or("none".to_owned(), |vlan| format!("VLAN {vlan}"));
        rows.extend(outcome.ledger.flows.iter().map(|flow| {
            let (from, to) = (flow.from.to_owned(), flow.to.to_owned());
            vec![
                from,
                to,
                tag(flow.vlan_sent),
                tag(flow.vlan_expected),
                flow.sent.to_string(),
                flow.received.to_string(),
            ]
        }));
        if matches!(self, View::Lines) {
            output::line(&format!("\n{}", status::vf_text(&outcome.node, 0, None)))?;
        }
        output::line(&format!("\n{}\n", output::columns(&rows)))?;
        let verdict = match outcome.ok {
            true => {
                "ok: every frame arrived once, in order, at its receiver, with the right tag; strays and unplugged guests got nowhere"
            }
            false => "NOT ok",
        };
        output::line(verdict)
    }
}

fn one_line(ledger: &Ledger, elapsed: Duration) -> String {
    let sum = |of: fn(&super::ledger::Flow) -> u64| ledger.flows.iter().map(of).sum::<u64>();
    let (received, bad) = (sum(|f| f.received), sum(|f| f.lost + f.duplicated + f.wrong_tag));
    let rate = received as f64 / elapsed.as_secs_f64().max(1e-3);
    let bad = bad + ledger.misdelivered + ledger.damaged;
    format!("{:>3} s  {received} frames passed, {rate:.0}/s, {bad} wrong", elapsed.as_secs_f64().round())
}

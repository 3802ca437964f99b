//! The graph: how long plugs took, and how agents came back to a restarted etcd.

use std::fmt::Write;

use super::outcome::{Outcome, Times};

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 240.0;
const BOTTOM: f64 = 300.0;
/// The axis of times, in powers of ten from 1 ms.
const DECADES: f64 = 4.0;

/// Two panels side by side.
pub fn svg(outcome: &Outcome) -> String {
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1010 350\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"1010\" height=\"350\" fill=\"white\"/>\n",
    );
    latencies(&mut svg, outcome);
    connects(&mut svg, outcome);
    svg + "</svg>\n"
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}

fn frame(svg: &mut String, left: f64, title: &str, second: &str, below: &str) {
    let _ = writeln!(svg, "<text x=\"{left}\" y=\"20\" font-weight=\"bold\">{title}</text>");
    text(svg, (left, 38.0), "start", second);
    let top = BOTTOM - HEIGHT;
    let _ = writeln!(
        svg,
        "<rect x=\"{left}\" y=\"{top}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#888\"/>"
    );
    text(svg, (left + WIDTH / 2.0, BOTTOM + 38.0), "middle", below);
}

/// Share of plugs answered within a time.
fn latencies(svg: &mut String, outcome: &Outcome) {
    let left = 60.0;
    let churn = &outcome.churn;
    let title = format!("action to up: {} hosts, {:.0} plugs/s", outcome.hosts, churn.plugs_per_s);
    let times = &churn.plug_to_up;
    let second = format!(
        "median {:.1} ms, p99 {:.1} ms, max {:.1} ms (grey: all of spp bind)",
        times.median_ms, times.p99_ms, times.max_ms
    );
    frame(svg, left, &title, &second, "answered within, ms (red: the target for 99 %)");
    let x = |ms: f64| left + WIDTH * (ms.clamp(1.0, 1e4).log10() / DECADES);
    for ms in [1.0, 10.0, 50.0, 100.0, 1_000.0, 10_000.0] {
        let dash = if ms == 50.0 { "stroke=\"#c00\" stroke-dasharray=\"4\"" } else { "stroke=\"#ddd\"" };
        let top = BOTTOM - HEIGHT;
        let _ =
            writeln!(svg, "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{top}\" y2=\"{BOTTOM}\" {dash}/>", x(ms));
        text(svg, (x(ms), BOTTOM + 16.0), "middle", &ms.to_string());
    }
    for percent in [0, 50, 99] {
        let y = BOTTOM - HEIGHT * f64::from(percent) / 100.0;
        text(svg, (left - 4.0, y + 4.0), "end", &format!("{percent}%"));
    }
    for (times, colour) in [(&churn.bind_call, "#999"), (times, "#06c")] {
        let points = shares(times, x);
        let _ = writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"
        );
    }
}

/// One point for every half percent, and for each of the last one percent.
fn shares(times: &Times, x: impl Fn(f64) -> f64) -> String {
    let n = times.all_ms.len();
    let step = (n / 200).max(1);
    let mut points = String::new();
    for (i, ms) in times.all_ms.iter().enumerate() {
        if i % step == 0 || i >= n - n / 100 - 1 {
            let _ = write!(points, "{:.1},{:.1} ", x(*ms), BOTTOM - HEIGHT * (i + 1) as f64 / n as f64);
        }
    }
    points
}

/// Agents that connected in each 100 ms after etcd was killed, and all dials.
fn connects(svg: &mut String, outcome: &Outcome) {
    let left = 560.0;
    let herd = &outcome.etcd_restart;
    let title = format!("etcd killed under {} agents: how they come back", outcome.hosts);
    let second = format!("all back {:.1} s after etcd (red) answers again", herd.all_connected_s);
    frame(svg, left, &title, &second, "s since the kill; per 100 ms, grey: dials, blue: listed and watching");
    let n = herd.dials.len().max(1) as f64;
    let most = herd.dials.iter().chain(&herd.connects).copied().max().unwrap_or(1).max(1) as f64;
    let wide = (WIDTH / n * 0.9).max(0.5);
    for (counts, colour) in [(&herd.dials, "#bbb"), (&herd.connects, "#06c")] {
        for (i, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let high = HEIGHT * 0.95 * *count as f64 / most;
            let (at, top) = (left + WIDTH * i as f64 / n, BOTTOM - high);
            let _ = writeln!(
                svg,
                "<rect x=\"{at:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" height=\"{high:.1}\" fill=\"{colour}\"/>"
            );
        }
    }
    let back = left + WIDTH * herd.etcd_back_idx as f64 / n;
    let top = BOTTOM - HEIGHT;
    let _ = writeln!(
        svg,
        "<line x1=\"{back:.1}\" x2=\"{back:.1}\" y1=\"{top}\" y2=\"{BOTTOM}\" stroke=\"#c00\" stroke-dasharray=\"4\"/>"
    );
    for i in (0..herd.dials.len()).step_by(10) {
        let at = left + WIDTH * i as f64 / n;
        text(svg, (at, BOTTOM + 16.0), "middle", &(i / 10).to_string());
    }
    text(svg, (left - 4.0, BOTTOM - HEIGHT * 0.95 + 4.0), "end", &most.to_string());
}

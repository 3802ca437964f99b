//! The ratios as bars: 1 is as good as the baseline, the tick is the target.

use std::path::Path;

use plotters::prelude::*;

use crate::runner::{Case, Result};

const BAR: i32 = 22;
const LEFT: i32 = 420;
const WIDTH: i32 = 1100;
const TOP: i32 = 50;

/// Draws all cases that have a ratio.
pub fn draw(path: &Path, cases: &[Case], share_min: f64) -> Result<()> {
    let bars: Vec<(&Case, f64)> =
        cases.iter().filter_map(|case| Some((case, case.compare(share_min).ratio?))).collect();
    let highest =
        bars.iter().flat_map(|(case, ratio)| [Some(*ratio), case.target]).flatten().fold(2.0, f64::max);
    let height = TOP + BAR * bars.len() as i32 + 20;
    let x = |ratio: f64| LEFT + ((WIDTH - LEFT - 80) as f64 * ratio / highest) as i32;
    let root = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    let failed = |error: DrawingAreaErrorKind<std::io::Error>| format!("{}: {error}", path.display());
    let text = ("sans-serif", 14).into_font();
    root.fill(&WHITE).map_err(failed)?;
    let title = "spp over the baseline (line: equal; tick: target)";
    root.draw(&Text::new(title, (10, 15), ("sans-serif", 18).into_font())).map_err(failed)?;
    for (n, (case, ratio)) in bars.iter().enumerate() {
        let y = TOP + BAR * n as i32;
        let reached = case.target.is_none_or(|target| *ratio >= target);
        let color = if reached { RGBColor(60, 130, 90) } else { RGBColor(190, 110, 50) };
        let name = format!("{} {}", case.row, case.name);
        root.draw(&Text::new(name, (10, y), text.clone())).map_err(failed)?;
        root.draw(&Rectangle::new([(LEFT, y), (x(*ratio), y + BAR - 6)], color.filled())).map_err(failed)?;
        root.draw(&Text::new(format!("{ratio:.2}"), (x(*ratio) + 6, y), text.clone())).map_err(failed)?;
        if let Some(target) = case.target {
            let tick = [(x(target), y - 2), (x(target), y + BAR - 4)];
            root.draw(&PathElement::new(tick, BLACK.stroke_width(3))).map_err(failed)?;
        }
    }
    root.draw(&PathElement::new([(x(1.0), TOP - 8), (x(1.0), height - 10)], BLACK)).map_err(failed)?;
    root.present().map_err(failed)
}

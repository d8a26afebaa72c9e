//! Plots of the ratios to the peers, as SVG.

use std::path::Path;

use plotters::prelude::*;

use super::table::CaseResult;
use super::text;

/// One bar for each comparison: our requests per second divided by the peer's.
pub fn ratios(path: &Path, title: &str, cases: &[CaseResult]) {
    let bars: Vec<(String, f64)> = cases
        .iter()
        .flat_map(|case| {
            case.series[1..].iter().map(|peer| {
                (
                    format!("{} ÷ {}", case.name, peer.program),
                    case.ratio(peer),
                )
            })
        })
        .collect();
    if bars.is_empty() {
        return;
    }
    draw(path, title, &bars).unwrap_or_else(|e| panic!("cannot draw {}: {e}", path.display()));
}

fn draw(
    path: &Path,
    title: &str,
    bars: &[(String, f64)],
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    const ROW: usize = 20;
    let height = (bars.len() * ROW + 90) as u32;
    let most = bars.iter().map(|(_, ratio)| *ratio).fold(1.2, f64::max) * 1.1;
    let root = SVGBackend::new(text(path), (900, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (names, area) = root.split_horizontally(380);
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 16))
        .margin_right(20)
        .x_label_area_size(30)
        .build_cartesian_2d(0.0..most, 0.0..bars.len() as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_desc("requests per second: snapback ÷ peer")
        .draw()?;
    let style = ("sans-serif", 12).into_font().color(&BLACK);
    for (i, (name, ratio)) in bars.iter().enumerate() {
        let y = (bars.len() - 1 - i) as f64;
        let color = if *ratio >= 1.0 {
            GREEN.mix(0.5)
        } else {
            RED.mix(0.5)
        };
        let bar = Rectangle::new([(0.0, y + 0.15), (*ratio, y + 0.85)], color.filled());
        chart.draw_series([bar])?;
        let label = format!("{ratio:.2}");
        let at = chart.backend_coord(&(*ratio, y + 0.8));
        root.draw(&Text::new(label, (at.0 + 4, at.1), style.clone()))?;
        let row = chart.backend_coord(&(0.0, y + 0.8)).1;
        names.draw(&Text::new(name.clone(), (6, row), style.clone()))?;
    }
    chart.draw_series([PathElement::new(
        [(1.0, 0.0), (1.0, bars.len() as f64)],
        BLACK,
    )])?;
    root.present()
}

//! SVG plots: lines over a logarithmic axis, and bars.

use std::path::Path;

use gatherfs_harness::Failure;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const SIZE: (u32, u32) = (760, 420);
/// Height of a bar and of the space between groups of bars, in pixels.
const BAR: u32 = 13;
const GROUP_SPACE: u32 = 10;
/// Height of heading and axis together.
const FRAME: u32 = 110;
const COLORS: [RGBColor; 4] = [RGBColor(0, 90, 181), RGBColor(220, 50, 32), RGBColor(90, 160, 220), RGBColor(240, 150, 130)];
/// The y axis goes on above the highest point, for the legend.
const LEGEND_ROOM: f64 = 1.3;
const GRID: RGBColor = RGBColor(225, 225, 225);

/// What is drawn and how its axes are called.
#[derive(Debug)]
pub struct Labels<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
}

/// A line: its name and its points.
pub type Series = (String, Vec<(f64, f64)>);

/// The least and the greatest of some values.
fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| value.is_finite()).fold(None, |bounds, value| {
        let (least, greatest) = bounds.unwrap_or((value, value));
        Some((value.min(least), value.max(greatest)))
    })
}

/// A value at an axis, without decimals that say nothing.
fn tick(value: &f64) -> String {
    if *value >= 10.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// Draws lines over an x axis in powers of two, if there are two points; `log_y` has the y axis in powers of ten. Whether it drew.
pub fn lines(path: &Path, labels: &Labels, log_x: bool, log_y: bool, series: &[Series]) -> Result<bool, Failure> {
    let points = || series.iter().flat_map(|(_, points)| points);
    let (Some((x0, x1)), Some((y0, y1))) = (bounds(points().map(|p| p.0)), bounds(points().map(|p| p.1))) else {
        return Ok(false);
    };
    if x0 >= x1 || (log_x && x0 <= 0.0) || (log_y && y0 <= 0.0) {
        return Ok(false);
    }
    match (log_x, log_y) {
        (true, _) => draw_lines(path, labels, (x0..x1).log_scale().base(2.0), 0.0..y1 * LEGEND_ROOM, series)?,
        (false, true) => draw_lines(path, labels, 0.0..x1 * 1.05, (y0 * 0.8..y1 * 4.0).log_scale(), series)?,
        (false, false) => draw_lines(path, labels, 0.0..x1 * 1.05, 0.0..y1 * LEGEND_ROOM, series)?,
    }
    Ok(true)
}

fn draw_lines<X, Y>(path: &Path, labels: &Labels, x: X, y: Y, series: &[Series]) -> Result<(), Failure>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut builder = ChartBuilder::on(&root);
    builder.caption(labels.title, ("sans-serif", 17)).margin(12).x_label_area_size(42).y_label_area_size(62);
    let mut chart = builder.build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .x_desc(labels.x)
        .y_desc(labels.y)
        .x_label_formatter(&tick)
        .y_label_formatter(&tick)
        .draw()?;
    for (i, (name, points)) in series.iter().enumerate() {
        let color = COLORS[i % COLORS.len()];
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, color.filled())))?;
    }
    chart.configure_series_labels().position(SeriesLabelPosition::UpperLeft).background_style(WHITE.mix(0.85)).border_style(GRID).draw()?;
    Ok(root.present()?)
}

/// Draws a group of bars for each name, one bar of each series. Whether there was something to draw.
pub fn bars(path: &Path, labels: &Labels, series: &[&str], groups: &[(String, Vec<f64>)]) -> Result<bool, Failure> {
    let Some((_, greatest)) = bounds(groups.iter().flat_map(|(_, values)| values.iter().copied())).filter(|(_, greatest)| *greatest > 0.0)
    else {
        return Ok(false);
    };
    let group = f64::from(series.len() as u32 * BAR + GROUP_SPACE);
    let height = group * groups.len() as f64;
    let root = SVGBackend::new(path, (SIZE.0, FRAME + height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut builder = ChartBuilder::on(&root);
    builder.caption(labels.title, ("sans-serif", 17)).margin(12).x_label_area_size(42).y_label_area_size(230);
    let mut chart = builder.build_cartesian_2d(0.0..greatest * 1.15, height..0.0)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .disable_y_mesh()
        .disable_y_axis()
        .x_desc(labels.x)
        .x_label_formatter(&tick)
        .draw()?;
    let right = TextStyle::from(("sans-serif", 12)).pos(Pos::new(HPos::Right, VPos::Center));
    let left = TextStyle::from(("sans-serif", 11)).pos(Pos::new(HPos::Left, VPos::Center));
    for (i, name) in series.iter().enumerate() {
        let color = COLORS[i % COLORS.len()];
        let top = |index: usize| index as f64 * group + f64::from(GROUP_SPACE) / 2.0 + i as f64 * f64::from(BAR);
        let values = groups.iter().enumerate().filter_map(|(index, (_, values))| Some((top(index), *values.get(i)?)));
        let bar = |(top, value): (f64, f64)| Rectangle::new([(0.0, top), (value, top + f64::from(BAR) - 1.0)], color.filled());
        chart
            .draw_series(values.clone().map(bar))?
            .label(*name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], color.filled()));
        let label = |(top, value): (f64, f64)| {
            let place = (value, top + f64::from(BAR) / 2.0);
            EmptyElement::at(place) + Text::new(super::text::figure(value), (4, 0), left.clone())
        };
        chart.draw_series(values.map(label))?;
    }
    for (index, (name, _)) in groups.iter().enumerate() {
        let place = (0.0, (index as f64 + 0.5) * group);
        let (x, y) = chart.backend_coord(&place);
        root.draw(&Text::new(name.clone(), (x - 8, y), right.clone()))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(GRID)
        .draw()?;
    root.present()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: Labels = Labels { title: "requests", x: "depth", y: "rate" };

    fn drawn(draw: impl Fn(&Path) -> Result<bool, Failure>) -> Option<String> {
        let path = std::env::temp_dir().join(format!("gatherfs-plot-{}-{:?}.svg", std::process::id(), std::thread::current().id()));
        let drew = draw(&path).unwrap();
        let text = std::fs::read_to_string(&path).ok();
        let _ = std::fs::remove_file(path);
        assert_eq!(drew, text.is_some());
        text
    }

    #[test]
    fn lines_have_their_names_and_points() {
        let series =
            [("gatherfs".to_owned(), vec![(1.0, 10.0), (64.0, 900.0)]), ("virtiofsd".to_owned(), vec![(1.0, 20.0), (64.0, 300.0)])];
        for (log_x, log_y) in [(true, false), (false, true), (false, false)] {
            let svg = drawn(|path| lines(path, &LABELS, log_x, log_y, &series)).expect("a plot");
            assert!(svg.contains("gatherfs") && svg.contains("virtiofsd") && svg.contains("depth"), "{svg}");
            assert!(svg.matches("<circle").count() >= 4 && svg.matches("<polyline").count() >= 2, "{svg}");
        }
        assert_eq!(drawn(|path| lines(path, &LABELS, true, false, &[("one".to_owned(), vec![(1.0, 1.0)])])), None);
        assert_eq!(drawn(|path| lines(path, &LABELS, true, false, &[])), None);
    }

    #[test]
    fn bars_have_their_groups_and_figures() {
        let groups = [("GETATTR".to_owned(), vec![52_000.0, 25_000.0]), ("LOOKUP".to_owned(), vec![41_000.0, 17_000.0])];
        let svg = drawn(|path| bars(path, &LABELS, &["gatherfs", "virtiofsd"], &groups)).expect("a plot");
        assert!(svg.contains("GETATTR") && svg.contains("52,000") && svg.matches("<rect").count() >= 5, "{svg}");
        assert_eq!(drawn(|path| bars(path, &LABELS, &["gatherfs"], &[])), None);
    }
}

//! Curves as an SVG: the gateway's and the bare bridge's, with the range of their runs.

use crate::table::median;
use std::fmt::Write as _;

/// Missions per second over one quantity, on a logarithmic axis.
pub struct Chart {
    pub x: String,
    pub points: Vec<Point>,
}

/// The runs at one place of it.
pub struct Point {
    pub x: usize,
    pub bare: Vec<f64>,
    pub ours: Vec<f64>,
}

type Runs = fn(&Point) -> &[f64];

const CURVES: [(&str, &str, Runs); 2] = [
    ("bare bridge", "#8c959f", |point| &point.bare),
    ("gateway", "#0969da", |point| &point.ours),
];

/// The area of one chart, and what is around it.
const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 40.0;
const BELOW: f64 = 66.0;

/// All of them side by side, on a common scale, with a note below.
pub fn svg(charts: &[Chart], note: &str) -> String {
    let (width, height) = (
        charts.len() as f64 * (LEFT + WIDTH) + 24.0,
        TOP + HEIGHT + BELOW,
    );
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#1f2328\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    text(&mut svg, 8.0, 18.0, "start", "missions/s to Succeeded");
    for (n, (name, colour, _)) in CURVES.iter().enumerate() {
        let x = LEFT + 150.0 + 110.0 * n as f64;
        let _ = writeln!(
            svg,
            "<circle cx=\"{x}\" cy=\"14\" r=\"4\" fill=\"{colour}\"/>"
        );
        text(&mut svg, x + 10.0, 18.0, "start", name);
    }
    let step = step(charts);
    for (n, chart) in charts.iter().enumerate() {
        let left = LEFT + n as f64 * (LEFT + WIDTH);
        let place = Place { left, step, chart };
        place.axes(&mut svg);
        for (_, colour, runs) in CURVES {
            place.curve(&mut svg, colour, runs);
        }
    }
    text(&mut svg, 8.0, height - 8.0, "start", note);
    svg + "</svg>\n"
}

/// Between two lines, of which there are five: a round number.
fn step(charts: &[Chart]) -> f64 {
    let points = charts.iter().flat_map(|chart| &chart.points);
    let runs = points.flat_map(|point| point.bare.iter().chain(&point.ours));
    let highest = runs.copied().fold(1.0, f64::max);
    let power = 10_f64.powf((highest / 5.0).log10().floor());
    let round = [1.0, 2.0, 2.5, 5.0, 10.0].map(|digit| digit * power);
    let enough = round.into_iter().find(|step| 5.0 * step >= highest);
    enough.unwrap_or(10.0 * power)
}

struct Place<'a> {
    left: f64,
    step: f64,
    chart: &'a Chart,
}

impl Place<'_> {
    fn axes(&self, svg: &mut String) {
        let right = self.left + WIDTH;
        for n in 0..=5 {
            let value = self.step * f64::from(n);
            let y = self.y(value);
            let left = self.left;
            let _ = writeln!(
                svg,
                "<line x1=\"{left}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#d1d9e0\"/>"
            );
            text(svg, left - 6.0, y + 4.0, "end", &value.to_string());
        }
        for point in &self.chart.points {
            let below = TOP + HEIGHT + 18.0;
            text(svg, self.x(point.x), below, "middle", &point.x.to_string());
        }
        let (middle, below) = (self.left + WIDTH / 2.0, TOP + HEIGHT + 36.0);
        text(svg, middle, below, "middle", &self.chart.x);
    }

    fn curve(&self, svg: &mut String, colour: &str, runs: Runs) {
        let mut line = String::new();
        for point in &self.chart.points {
            let (x, runs) = (self.x(point.x), runs(point));
            let y = self.y(median(runs));
            let _ = write!(line, "{x:.1},{y:.1} ");
            let lowest = self.y(runs.iter().copied().fold(f64::INFINITY, f64::min));
            let highest = self.y(runs.iter().copied().fold(0.0, f64::max));
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{lowest:.1}\" x2=\"{x:.1}\" y2=\"{highest:.1}\" stroke=\"{colour}\"/>\n\
                 <circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>"
            );
        }
        let line = line.trim_end();
        let _ = writeln!(
            svg,
            "<polyline points=\"{line}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        );
    }

    fn x(&self, value: usize) -> f64 {
        let log = |value: usize| (value as f64).ln();
        let places = self.chart.points.iter().map(|point| log(point.x));
        let first = places.clone().fold(f64::INFINITY, f64::min);
        let last = places.fold(0.0, f64::max);
        let margin = 20.0;
        let part = (log(value) - first) / (last - first);
        self.left + margin + part * (WIDTH - 2.0 * margin)
    }

    fn y(&self, value: f64) -> f64 {
        TOP + HEIGHT - value / (5.0 * self.step) * HEIGHT
    }
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}

//! A chart of lines as SVG, for the documents: it needs no script, and is read on light and dark pages.

use std::fmt::Write;

/// A chart is so wide and high.
const SIZE: (f64, f64) = (640.0, 300.0);
/// Room around its lines: left, right (for their names), top, bottom.
const ROOM: (f64, f64, f64, f64) = (64.0, 150.0, 34.0, 44.0);
/// Of the lines, in their order; also apart for who sees no red or no green.
const COLOURS: [&str; 4] = ["#0072b2", "#e69f00", "#d55e00", "#009e73"];

/// A line with its name.
pub(crate) struct Curve {
    pub(crate) name: &'static str,
    /// Points, from left to right.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Lines over one axis.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) across: &'static str,
    pub(crate) curves: Vec<Curve>,
    /// Whether the upright axis has a step for each power of ten.
    pub(crate) logarithmic: bool,
}

impl Chart {
    /// What the upright axis shows: its ends and its marks.
    fn upright(&self) -> (f64, f64, Vec<f64>) {
        let values = self.curves.iter().flat_map(|c| &c.points).map(|(_, y)| *y).filter(|y| *y > 0.0);
        let (least, most) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(a, b), y| (a.min(y), b.max(y)));
        if self.logarithmic {
            let (low, high) = (least.min(most).log10().floor() as i32, most.log10().ceil() as i32);
            let marks = (low..=high.max(low + 1)).map(|n| 10f64.powi(n));
            return (10f64.powi(low), 10f64.powi(high.max(low + 1)), marks.collect());
        }
        let step = step(most);
        let steps = (most / step).ceil().max(1.0) as usize;
        (0.0, step * steps as f64, (0..=steps).map(|n| n as f64 * step).collect())
    }

    /// The group of one chart, `top` below the upper edge.
    fn group(&self, top: f64) -> String {
        let (left, right, above, below) = ROOM;
        let (wide, high) = (SIZE.0 - left - right, SIZE.1 - above - below);
        let (low, most, marks) = self.upright();
        let end = self.curves.iter().flat_map(|c| &c.points).fold(0.0, |m: f64, (x, _)| m.max(*x));
        let far = step(end) * (end / step(end)).ceil().max(1.0);
        let x = |value: f64| left + wide * value / far;
        let share = |value: f64| match self.logarithmic {
            true => (value.max(low) / low).log10() / (most / low).log10(),
            false => value / most,
        };
        let y = |value: f64| above + high * (1.0 - share(value));
        let mut out = format!("<g transform=\"translate(0 {top})\">\n");
        // Writing to a text cannot fail.
        let _ = writeln!(out, "<text x=\"{left}\" y=\"20\" font-weight=\"bold\">{}</text>", self.title);
        for mark in marks {
            let at = y(mark);
            let _ = writeln!(
                out,
                "<path d=\"M{left} {at:.1}h{wide}\" stroke=\"#ccc\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 8.0,
                at + 4.0,
                plain(mark)
            );
        }
        let mut mark = 0.0;
        while mark <= far {
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                x(mark),
                above + high + 18.0,
                plain(mark)
            );
            mark += step(end);
        }
        let middle = left + wide / 2.0;
        let _ = writeln!(
            out,
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            SIZE.1 - 8.0,
            self.across
        );
        for ((at, curve), colour) in self.curves.iter().enumerate().zip(COLOURS.iter().cycle()) {
            let points: Vec<String> =
                curve.points.iter().map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b))).collect();
            let _ = writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                points.join(" ")
            );
            for point in &points {
                let Some((a, b)) = point.split_once(',') else { continue };
                let _ = writeln!(out, "<circle cx=\"{a}\" cy=\"{b}\" r=\"3\" fill=\"{colour}\"/>");
            }
            let (key, line) = (left + wide + 12.0, above + 12.0 + 20.0 * at as f64);
            let _ = writeln!(
                out,
                "<path d=\"M{key:.1} {line:.1}h14\" stroke=\"{colour}\" stroke-width=\"3\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                key + 20.0,
                line + 4.0,
                curve.name
            );
        }
        out + "</g>\n"
    }
}

/// Charts, one below the other.
pub(crate) fn svg(charts: &[Chart]) -> String {
    let (wide, high) = (SIZE.0, SIZE.1 * charts.len() as f64);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {wide} {high}\" font-family=\"sans-serif\" font-size=\"12\" role=\"img\">\n\
         <rect width=\"{wide}\" height=\"{high}\" fill=\"#fff\"/>\n"
    );
    for (at, chart) in charts.iter().enumerate() {
        out += &chart.group(SIZE.1 * at as f64);
    }
    out + "</svg>\n"
}

/// A round distance of marks, of which there are five to ten up to `most`.
fn step(most: f64) -> f64 {
    let rough = most.max(f64::MIN_POSITIVE) / 10.0;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|n| n * power).find(|step| *step >= rough).unwrap_or(rough)
}

/// A number without digits that say nothing.
fn plain(value: f64) -> String {
    if value.fract().abs() < 1e-9 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(logarithmic: bool, points: &[(f64, f64)]) -> Chart {
        let curves = vec![Curve { name: "one", points: points.to_vec() }];
        Chart { title: "a title".to_owned(), across: "arrivals", curves, logarithmic }
    }

    #[test]
    fn axes_have_round_ends_around_every_point() {
        let ends = |c: &Chart| (c.upright().0, c.upright().1);
        assert_eq!(ends(&chart(true, &[(1.0, 64.0), (2.0, 2400.0)])), (10.0, 10000.0));
        assert_eq!(ends(&chart(true, &[(1.0, 100.0)])), (100.0, 1000.0));
        assert_eq!(ends(&chart(false, &[(1.0, 3.0), (2.0, 87.0)])), (0.0, 90.0));
        assert_eq!(ends(&chart(false, &[(0.0, 0.0)])).0, 0.0);
        assert!(["0", "20", "0.50"].iter().zip([0.0, 20.0, 0.5]).all(|(a, b)| **a == plain(b)));
    }

    /// A point that is twice as far is drawn twice as far; a power of ten is the same way up everywhere.
    #[test]
    fn points_are_where_their_numbers_are() {
        let drawn = |logarithmic, points: &[(f64, f64)]| -> Vec<(f64, f64)> {
            let svg = svg(&[chart(logarithmic, points)]);
            let circles = svg.split("<circle cx=\"").skip(1);
            let number = |text: &str| text.split('"').next().unwrap().parse::<f64>().unwrap();
            circles.map(|c| (number(c), number(c.split("cy=\"").nth(1).unwrap()))).collect()
        };
        let linear = drawn(false, &[(0.0, 0.0), (50.0, 50.0), (100.0, 100.0)]);
        let (left, _, above, below) = ROOM;
        assert_eq!((linear[0].0, linear[0].1, linear[2].1), (left, SIZE.1 - below, above));
        assert!(((linear[2].0 - linear[1].0) - (linear[1].0 - linear[0].0)).abs() < 0.2, "{linear:?}");
        let powers = drawn(true, &[(1.0, 10.0), (2.0, 100.0), (3.0, 1000.0)]);
        assert!(((powers[0].1 - powers[1].1) - (powers[1].1 - powers[2].1)).abs() < 0.2, "{powers:?}");
    }
}

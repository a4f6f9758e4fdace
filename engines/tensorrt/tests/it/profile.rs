//! Profiles follow from the graph's ranges, with changes that stay consistent.

use dpar_engine_tensorrt::{Override, Point, Profile, ProfileError};
use dpar_export_spec::{AxisRange, GraphSpec};

use crate::graph;

fn spec() -> GraphSpec {
    graph("attention_step").spec
}

fn axis(axis: &str, point: Point, size: usize) -> Override {
    Override::Axis { axis: axis.into(), point, size }
}

fn port(port: &str, point: Point, sizes: &[usize]) -> Override {
    Override::Port { port: port.into(), point, sizes: sizes.to_vec() }
}

fn with(overrides: &[Override]) -> Result<Profile, ProfileError> {
    Profile::from_spec("p", &spec()).with(&spec(), overrides)
}

fn range(profile: &Profile, axis: &str) -> (usize, usize, usize) {
    let AxisRange { min, opt, max, .. } = profile.axes[axis];
    (min, opt, max)
}

#[test]
fn a_sum_is_the_sum_at_each_point() {
    let spec = spec();
    let profile = Profile::from_spec("p", &spec);
    profile.check(&spec).unwrap();
    let mask = spec.input("mask").unwrap();
    let shapes = Point::ALL.map(|p| profile.shape(&spec, mask, p).unwrap());
    assert_eq!(shapes, [vec![1, 1, 1, 1], vec![2, 1, 1, 7], vec![4, 1, 8, 24]]);
    let decode = Profile::decode("d", &spec).unwrap();
    assert_eq!(range(&decode, "tokens"), (1, 1, 1));
    assert_eq!(decode.shape(&spec, mask, Point::Max).unwrap(), [4, 1, 1, 17]);
    assert_eq!(Profile::decode("d", &graph("head").spec), None);
}

#[test]
fn points_that_are_not_named_follow() {
    assert_eq!(range(&with(&[axis("batch", Point::Max, 1)]).unwrap(), "batch"), (1, 1, 1));
    assert_eq!(range(&with(&[axis("past_tokens", Point::Min, 8)]).unwrap(), "past_tokens"), (8, 8, 16));
    let both = [axis("past_tokens", Point::Min, 2), axis("past_tokens", Point::Max, 4)];
    assert_eq!(range(&with(&both).unwrap(), "past_tokens"), (2, 4, 4));
    let opt = [port("tokens", Point::Opt, &[4, 3])];
    assert_eq!(range(&with(&opt).unwrap(), "batch"), (1, 4, 4));
    assert_eq!(range(&with(&opt).unwrap(), "tokens"), (1, 3, 8));
}

#[test]
fn contradictions_are_named() {
    let refused = |overrides: &[Override], text: &str| {
        let e = with(overrides).unwrap_err();
        assert!(e.message.contains(text), "{e}");
        assert_eq!((e.graph.as_str(), e.profile.as_str()), ("attention_step", "p"));
    };
    refused(&[axis("bath", Point::Max, 1)], "no axis `bath`; the graph has batch, past_tokens, tokens");
    refused(&[port("mosk", Point::Max, &[1])], "no input `mosk`; the graph has mask, past_key_0, ");
    refused(&[axis("batch", Point::Max, 5)], "axis `batch` is 1 to 5, the graph takes 1 to 4");
    refused(&[axis("batch", Point::Min, 0)], "axis `batch` is 0 to 4, the graph takes 1 to 4");
    let order = [axis("batch", Point::Min, 3), axis("batch", Point::Opt, 2)];
    refused(&order, "needs min <= opt <= max, it has 3, 2, 4");
    refused(&[port("tokens", Point::Opt, &[4])], "input `tokens` is [batch, tokens], it cannot be [4]");
    refused(&[port("mask", Point::Opt, &[2, 2, 1, 7])], "it cannot be [2, 2, 1, 7]");
    refused(&[port("mask", Point::Opt, &[2, 1, 1, 9])], "`past_tokens + tokens` of input `mask` is 7 at opt");
    let twice = [port("tokens", Point::Opt, &[4, 3]), axis("batch", Point::Opt, 2)];
    refused(&twice, "axis `batch` is asked to be 4 and 2 at opt");
    with(&[port("mask", Point::Opt, &[2, 1, 3, 9])]).unwrap();
}

#[test]
fn what_it_takes_follows_from_all_axes() {
    let profile = with(&[axis("batch", Point::Max, 2)]).unwrap();
    let takes = |batch, tokens| profile.takes(&[("batch".into(), batch), ("tokens".into(), tokens)].into());
    assert!(takes(1, 8) && takes(2, 1));
    assert!(!takes(3, 1) && !takes(1, 9) && !takes(0, 1));
}

#[test]
fn sizes_beyond_memory_are_refused() {
    let mut spec = spec();
    let huge = AxisRange { name: "batch".into(), min: 1, opt: 1, max: usize::MAX };
    spec.axes.iter_mut().filter(|a| a.name == "batch").for_each(|a| *a = huge.clone());
    let e = Profile::from_spec("p", &spec).check(&spec).unwrap_err();
    assert!(e.message.contains("more than fits any memory"), "{e}");
}

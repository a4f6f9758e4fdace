//! The cache on the stand-in for the driver; the tests write where TensorRT would.

use super::*;
use crate::cuda::fake;
use dpar_engine_api::TensorView;
use dpar_export_spec::{AxisRange, DType, Port};

const MOST: usize = 40;

/// Keys and values of one layer, slots of `width` floats.
fn spec(width: usize) -> GraphSpec {
    let axis = |name: &str, min, max| AxisRange { name: name.into(), min, opt: min, max };
    let dims =
        |time: &str, rows: &str| vec![Dim::axis(time), Dim::axis(rows), Dim::Fixed(1), Dim::Fixed(width)];
    let port = |name: &str, time: &str, rows: &str| Port::new(name, DType::F32, dims(time, rows));
    GraphSpec {
        name: "g".into(),
        component: "c".into(),
        inputs: vec![
            Port::new("x", DType::F32, vec![Dim::axis("batch"), Dim::axis("new")]),
            port("past_key_0", "past", "rows"),
            port("past_value_0", "past", "rows"),
        ],
        outputs: vec![port("new_key_0", "new", "batch"), port("new_value_0", "new", "batch")],
        axes: vec![axis("batch", 1, 8), axis("rows", 1, 8), axis("new", 1, 8), axis("past", 0, MOST)],
    }
}

struct Bench {
    spec: GraphSpec,
    stream: Stream,
    cache: DeviceCache,
    width: usize,
    /// What each slot must hold, by time and row; `None` = zeros.
    expected: Vec<Vec<Option<f32>>>,
    written: f32,
}

impl Bench {
    fn new(width: usize) -> Self {
        let device = Device::open(&fake::driver(), 0).unwrap();
        let spec = spec(width);
        let cache = DeviceCache::new(&device, &spec, &[]).unwrap();
        let stream = Stream::new(&device).unwrap();
        Self { spec, stream, cache, width, expected: Vec::new(), written: 0.0 }
    }

    fn reset(&mut self, rows: usize) {
        self.cache.reset(rows);
        self.expected.clear();
    }

    /// One step: what the engine would see is checked, what it would write is written.
    fn step(&mut self, new: usize, past: usize, append: Append<'_>) -> Result<Vec<Place>, String> {
        let rows = self.cache.state().rows();
        let batch = if let Append::Rows { rows, .. } = append { rows.len() } else { rows };
        let x = vec![0.0; batch * new];
        let inputs = [("x", TensorView::f32([batch, new], &x))];
        let step = self.cache.state().check(&self.spec, &inputs, past, append).unwrap();
        let places = self.cache.place(&self.stream, &step, append)?;
        let mut fresh = Vec::new();
        for (tensor, place) in places.iter().enumerate() {
            let seen = fake::read(place.past, past * rows * self.width);
            for (i, value) in seen.chunks(self.width).enumerate() {
                let slot = self.expected[i / rows][i % rows];
                let want = slot.map_or(0.0, |v| v + tensor as f32 * 0.5);
                assert!(value.iter().all(|v| *v == want), "slot {i} is {value:?}, not {want}");
            }
            fresh = (0..new * batch).map(|i| self.written + i as f32).collect();
            let both: Vec<f32> = fresh.iter().map(|v| v + tensor as f32 * 0.5).collect();
            let elements: Vec<f32> = both.iter().flat_map(|v| vec![*v; self.width]).collect();
            fake::write(place.fresh, &elements);
        }
        self.written += (new * batch) as f32;
        self.cache.store(&self.stream, &step, append)?;
        self.stream.synchronize()?;
        match append {
            Append::At(time) => {
                self.expected.truncate(time);
                self.expected.extend(fresh.chunks(batch).map(|c| c.iter().map(|v| Some(*v)).collect()));
            }
            Append::Rows { rows: of, times } => {
                for ((row, time), value) in of.iter().zip(times).zip(fresh) {
                    while self.expected.len() <= *time {
                        self.expected.push(vec![None; rows]);
                    }
                    self.expected[*time][*row] = Some(value);
                }
            }
        }
        Ok(places)
    }

    fn keep(&mut self, rows: usize) -> Result<(), String> {
        self.cache.keep_rows(&self.stream, rows)?;
        self.expected.iter_mut().for_each(|line| line.truncate(rows));
        Ok(())
    }
}

/// What is seen is what was written, whatever the order of appends, scatters, truncations and resets.
#[test]
fn the_cache_holds_what_was_written() {
    for (width, mut state) in [(1, 1_u64), (64, 2), (24, 3)] {
        let mut below = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let mut bench = Bench::new(width);
        for _ in 0..12 {
            bench.reset(1 + below(6));
            while bench.expected.len() < MOST - 8 {
                let (rows, length) = (bench.cache.state().rows(), bench.expected.len());
                match below(12) {
                    0 if rows > 1 => bench.keep(1 + below(rows)).unwrap(),
                    1..5 => {
                        let of: Vec<usize> = (0..rows).rev().filter(|_| below(3) > 0).collect();
                        let times: Vec<usize> = of.iter().map(|_| below(length + 1)).collect();
                        if !of.is_empty() {
                            bench.step(1, length, Append::Rows { rows: &of, times: &times }).unwrap();
                        }
                    }
                    5 if length > 3 => drop(bench.step(1, length - 2, Append::At(length - 1)).unwrap()),
                    _ => drop(bench.step(1 + below(3), length, Append::At(length)).unwrap()),
                }
            }
        }
        drop(bench);
        assert_eq!(fake::allocations().0, 0, "everything was freed");
    }
}

#[test]
fn new_slots_are_written_behind_the_past_and_nothing_is_copied() {
    // 64 floats are 256 bytes: every slot begins where TensorRT takes it.
    let mut bench = Bench::new(64);
    bench.reset(3);
    let mut bases = None;
    fake::log();
    for time in 0..MOST {
        let places = bench.step(1, time, Append::At(time)).unwrap();
        let base: Vec<_> = places.iter().map(|p| p.past).collect();
        assert_eq!(*bases.get_or_insert_with(|| base.clone()), base, "the cache does not move");
        for place in places {
            assert_eq!(place.fresh.addr() - place.past.addr(), time * 3 * 256);
        }
    }
    assert_eq!(fake::log(), [""; 0]);
    let (live, ever) = fake::allocations();
    assert_eq!((live, ever), (2, 2), "one buffer a tensor, whatever the number of steps");
    // Fewer rows fit into the same memory, and so does another sequence.
    for rows in [2, 3] {
        bench.reset(rows);
        bench.step(4, 0, Append::At(0)).unwrap();
    }
    assert_eq!(fake::allocations(), (2, 2));
    bench.reset(8);
    bench.step(1, 0, Append::At(0)).unwrap();
    assert_eq!(fake::allocations(), (2, 4), "more rows need more");
}

#[test]
fn slots_that_begin_elsewhere_are_staged_and_copied_once() {
    let mut bench = Bench::new(16);
    bench.reset(3);
    fake::log();
    bench.step(1, 0, Append::At(0)).unwrap();
    assert_eq!(fake::log(), [""; 0], "the first byte is always aligned");
    let places = bench.step(2, 1, Append::At(1)).unwrap();
    assert_ne!(places[0].fresh.addr() - places[0].past.addr(), 192);
    // Slots of 64 bytes; #0 and #1 are the cache, #2 and #3 the new slots.
    assert_eq!(fake::log(), ["copy 384: #2+0 to #0+192", "copy 384: #3+0 to #1+192"]);
}

#[test]
fn slots_of_some_rows_are_scattered_in_as_few_copies_as_possible() {
    assert_eq!(
        pieces(4, &[0, 1, 2, 3], &[2, 2, 2, 3]),
        [Piece { from: 0, to: 8, slots: 3 }, Piece { from: 3, to: 15, slots: 1 }]
    );
    let mut bench = Bench::new(64);
    bench.reset(3);
    fake::log();
    bench.step(1, 0, Append::Rows { rows: &[0, 1, 2], times: &[0, 0, 0] }).unwrap();
    let first = fake::log();
    assert_eq!(first.len(), 4, "{first:?}");
    assert!(first[0].starts_with("fill 768") && first[1].starts_with("copy 768"), "{first:?}");
    bench.step(1, 1, Append::Rows { rows: &[2, 0], times: &[1, 1] }).unwrap();
    assert_eq!(fake::log().iter().filter(|l| l.starts_with("copy 256")).count(), 4);
    // A row that catches up lengthens nothing.
    bench.step(1, 2, Append::Rows { rows: &[1], times: &[1] }).unwrap();
    assert_eq!(fake::log().iter().filter(|l| l.starts_with("fill")).count(), 0);
}

#[test]
fn half_of_the_rows_are_kept_with_one_copy_a_time_and_more_without_a_second_buffer() {
    let mut bench = Bench::new(64);
    bench.reset(4);
    bench.step(3, 0, Append::At(0)).unwrap();
    fake::log();
    bench.keep(4).unwrap();
    assert_eq!(fake::log(), [""; 0]);
    let before = fake::allocations();
    bench.keep(3).unwrap();
    // Time 1 moves one row down, so in three pieces; time 2 moves two, in two.
    assert_eq!(fake::log().len(), 2 * (3 + 2));
    bench.keep(1).unwrap();
    assert_eq!(fake::log().len(), 2 * 2);
    assert_eq!(fake::allocations(), before);
    bench.step(1, 3, Append::At(3)).unwrap();
    bench.keep(0).unwrap();
    assert_eq!(bench.cache.state().rows(), 0);
}

#[test]
fn a_cache_that_is_too_large_for_the_device_grows_by_doubling() {
    // 40 slots of 8 rows of 4 KiB in two tensors are 2.5 MiB; the stand-in has 1 MiB.
    let mut bench = Bench::new(1024);
    bench.reset(8);
    let mut ever = Vec::new();
    for time in 0..5 {
        bench.step(1, time, Append::At(time)).unwrap();
        ever.push(fake::allocations().1);
    }
    assert_eq!(ever, [2, 4, 6, 6, 8]);
    assert_eq!(fake::allocations().0, 2, "what was outgrown is freed");
    let e = (5..MOST).find_map(|time| bench.step(1, time, Append::At(time)).err()).unwrap();
    assert!(e.contains("CUDA_ERROR_OUT_OF_MEMORY (2): out of memory"), "{e}");
    // The device is not lost: a smaller sequence runs.
    bench.reset(1);
    bench.step(1, 0, Append::At(0)).unwrap();
}

#[test]
fn known_profiles_bound_the_memory() {
    let device = Device::open(&fake::driver(), 0).unwrap();
    let spec = spec(64);
    let short = |max| {
        let mut profile = Profile::from_spec("p", &spec);
        profile.axes.get_mut("past").unwrap().max = max;
        profile
    };
    let cache = DeviceCache::new(&device, &spec, &[short(3), short(9)]).unwrap();
    assert_eq!(cache.most, 9);
    assert_eq!(DeviceCache::new(&device, &spec, &[]).unwrap().most, MOST);
}

#[test]
fn every_failing_call_is_an_error_in_cudas_words_and_nothing_leaks() {
    let some = Append::Rows { rows: &[1], times: &[2] };
    for call in ["cuMemAlloc", "cuMemGetInfo", "cuMemcpyDtoDAsync", "cuMemsetD8Async", "cuStreamSynchronize"]
    {
        let mut bench = Bench::new(16);
        bench.reset(2);
        let failed = |result: Result<(), String>| {
            let e = result.unwrap_err();
            let words = if call == "cuMemAlloc" { "out of memory" } else { "an illegal memory access" };
            assert!(e.contains(call) && e.contains(words), "{call}: {e}");
        };
        if ["cuMemAlloc", "cuMemGetInfo"].contains(&call) {
            fake::fail(Some(call));
            failed(bench.step(1, 0, Append::At(0)).map(drop));
            fake::fail(None);
        }
        bench.step(2, 0, Append::At(0)).unwrap();
        fake::fail(Some(call));
        if !["cuMemAlloc", "cuMemGetInfo", "cuMemsetD8Async"].contains(&call) {
            failed(bench.keep(1));
            fake::fail(None);
            bench.reset(2);
            bench.step(2, 0, Append::At(0)).unwrap();
            fake::fail(Some(call));
        }
        if call != "cuMemGetInfo" {
            failed(bench.step(1, 2, some).map(drop));
        }
        fake::fail(None);
        bench.reset(2);
        bench.step(1, 0, Append::At(0)).unwrap();
        drop(bench);
        assert_eq!(fake::allocations().0, 0, "{call}");
    }
}

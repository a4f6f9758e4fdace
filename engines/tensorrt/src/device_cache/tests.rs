//! The cache on the stand-in for the driver; the tests write where TensorRT would.

use super::*;
use crate::cuda::fake;
use dpar_engine_api::{CallRow, TensorView};
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
            Port::new("rows", DType::I64, vec![Dim::axis("batch")]),
        ],
        outputs: vec![port("new_key_0", "new", "batch"), port("new_value_0", "new", "batch")],
        axes: vec![axis("batch", 1, 8), axis("rows", 1, 8), axis("new", 1, 8), axis("past", 0, MOST)],
    }
}

struct Bench {
    spec: GraphSpec,
    stream: CudaStream,
    cache: DeviceCache,
    width: usize,
    /// What each slot must hold, by time and row; `None` = zeros.
    expected: Vec<Vec<Option<f32>>>,
    lengths: Vec<usize>,
    written: f32,
}

impl Bench {
    fn new(width: usize) -> Self {
        let device = CudaDevice::open(&fake::driver(), 0).unwrap();
        let spec = spec(width);
        let cache = DeviceCache::new(&device, &spec, &[]).unwrap();
        let stream = CudaStream::new(&device).unwrap();
        Self { spec, stream, cache, width, expected: Vec::new(), lengths: Vec::new(), written: 0.0 }
    }

    fn reset(&mut self, rows: usize) {
        self.cache.reset(rows);
        self.expected.clear();
        self.lengths = vec![0; rows];
    }

    fn length(&self) -> usize {
        self.lengths.iter().copied().max().unwrap()
    }

    /// One step of all rows that have as many slots.
    fn all(&mut self, new: usize, past: usize) -> Result<Vec<CacheSlice>, CudaError> {
        self.step(new, &CallRow::all(self.lengths.len(), past), None)
    }

    /// One step: what the engine would see is checked, what it would write is written.
    fn step(
        &mut self,
        new: usize,
        rows: &[CallRow],
        kept: Option<&[usize]>,
    ) -> Result<Vec<CacheSlice>, CudaError> {
        let (of, batch) = (self.lengths.len(), rows.len());
        let x = vec![0.0; batch * new];
        let inputs = [("x", TensorView::f32([batch, new], &x))];
        let step = self.cache.state().check(&self.spec, &inputs, rows).unwrap();
        let places = self.cache.place(&self.stream, &step, rows, kept)?;
        // Nothing is left of a row that begins again.
        for (i, row) in rows.iter().enumerate().filter(|(_, row)| row.past == 0) {
            if kept.is_none_or(|kept| kept.contains(&i)) {
                self.expected.iter_mut().for_each(|slots| slots[row.row] = None);
            }
        }
        for (tensor, place) in places.iter().enumerate() {
            let seen = fake::read(place.past, step.past * of * self.width);
            for (i, value) in seen.chunks(self.width).enumerate() {
                let slot = self.expected[i / of][i % of];
                let want = slot.map_or(0.0, |v| v + tensor as f32 * 0.5);
                assert!(value.iter().all(|v| *v == want), "slot {i} is {value:?}, not {want}");
            }
            let fresh = (0..new * batch).map(|i| self.written + i as f32 + tensor as f32 * 0.5);
            let elements: Vec<f32> = fresh.flat_map(|v| vec![v; self.width]).collect();
            fake::write(place.fresh, &elements);
        }
        self.cache.store(&self.stream, &step, rows, kept)?;
        self.stream.synchronize()?;
        let all: Vec<usize> = (0..batch).collect();
        for i in kept.unwrap_or(&all) {
            let CallRow { row, past, .. } = rows[*i];
            for k in 0..new {
                while self.expected.len() <= past + k {
                    self.expected.push(vec![None; of]);
                }
                self.expected[past + k][row] = Some(self.written + (k * batch + i) as f32);
            }
            self.lengths[row] = past + new;
        }
        self.written += (new * batch) as f32;
        assert_eq!(self.cache.state().length(), self.length());
        self.expected.truncate(self.length());
        Ok(places)
    }
}

/// What is seen is what was written, whatever the order of appends, rows on their own, rows that begin again and resets.
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
            let of = bench.lengths.len();
            while bench.length() < MOST - 8 {
                let least = bench.lengths.iter().copied().min().unwrap();
                let new = 1 + below(3);
                let mut rows: Vec<CallRow> =
                    (0..of).rev().map(|row| CallRow::new(row, bench.lengths[row])).collect();
                match below(12) {
                    0 => {
                        let row = below(of);
                        rows = vec![CallRow::new(row, below(bench.lengths[row] + 1))];
                    }
                    1..5 => rows.retain(|_| below(3) > 0),
                    5..7 if least > 3 => rows = CallRow::all(of, least - 1),
                    7 => {
                        let kept: Vec<usize> = (0..of).filter(|_| below(2) > 0).collect();
                        drop(bench.step(new, &rows, Some(&kept)).unwrap());
                        continue;
                    }
                    _ => rows.reverse(),
                }
                if !rows.is_empty() {
                    drop(bench.step(new, &rows, None).unwrap());
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
        let places = bench.all(1, time).unwrap();
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
        bench.all(4, 0).unwrap();
    }
    assert_eq!(fake::allocations(), (2, 2));
    bench.reset(8);
    bench.all(1, 0).unwrap();
    assert_eq!(fake::allocations(), (2, 4), "more rows need more");
}

#[test]
fn slots_that_begin_elsewhere_are_staged_and_copied_once() {
    let mut bench = Bench::new(16);
    bench.reset(3);
    fake::log();
    bench.all(1, 0).unwrap();
    assert_eq!(fake::log(), [""; 0], "the first byte is always aligned");
    let places = bench.all(2, 1).unwrap();
    assert_ne!(places[0].fresh.addr() - places[0].past.addr(), 192);
    // Slots of 64 bytes; #0 and #1 are the cache, #2 and #3 the new slots.
    assert_eq!(fake::log(), ["copy 384: #2+0 to #0+192", "copy 384: #3+0 to #1+192"]);
}

#[test]
fn slots_of_some_rows_are_scattered_in_as_few_copies_as_possible() {
    let row = CallRow::new;
    assert_eq!(
        pieces(4, &[row(0, 2), row(1, 2), row(2, 2), row(3, 3)], &[0, 1, 2, 3], 1),
        [SlotRun { from: 0, to: 8, slots: 3 }, SlotRun { from: 3, to: 15, slots: 1 }]
    );
    assert_eq!(
        pieces(3, &[row(0, 0), row(1, 1), row(2, 1)], &[1, 2], 2),
        [SlotRun { from: 1, to: 4, slots: 2 }, SlotRun { from: 4, to: 7, slots: 2 }]
    );
    let mut bench = Bench::new(64);
    bench.reset(3);
    fake::log();
    bench.step(1, &[row(2, 0), row(1, 0), row(0, 0)], None).unwrap();
    let first = fake::log();
    assert_eq!(first.len(), 8, "{first:?}");
    assert!(first[0].starts_with("fill 768") && first[1].starts_with("copy 256"), "{first:?}");
    bench.step(1, &[row(2, 1), row(0, 1)], None).unwrap();
    assert_eq!(fake::log().iter().filter(|l| l.starts_with("copy 256")).count(), 4);
    // A row that catches up lengthens nothing.
    bench.step(1, &[row(1, 1)], None).unwrap();
    assert_eq!(fake::log().iter().filter(|l| l.starts_with("fill")).count(), 0);
    // Rows that only fill up a call keep nothing.
    bench.step(1, &[row(0, 0), row(1, 2), row(2, 0)], Some(&[1])).unwrap();
    assert_eq!(fake::log().iter().filter(|l| l.starts_with("copy 256")).count(), 2);
    assert_eq!(bench.lengths, [2, 3, 2]);
}

#[test]
fn a_cache_that_is_too_large_for_the_device_grows_by_doubling() {
    // 40 slots of 8 rows of 4 KiB in two tensors are 2.5 MiB; the stand-in has 1 MiB.
    let mut bench = Bench::new(1024);
    bench.reset(8);
    let mut ever = Vec::new();
    for time in 0..5 {
        bench.all(1, time).unwrap();
        ever.push(fake::allocations().1);
    }
    assert_eq!(ever, [2, 4, 6, 6, 8]);
    assert_eq!(fake::allocations().0, 2, "what was outgrown is freed");
    let e = (5..MOST).find_map(|time| bench.all(1, time).err()).unwrap();
    assert!(e.to_string().contains("CUDA_ERROR_OUT_OF_MEMORY (2): out of memory"), "{e}");
    // The device is not lost: a smaller sequence runs.
    bench.reset(1);
    bench.all(1, 0).unwrap();
}

#[test]
fn known_profiles_bound_the_memory() {
    let device = CudaDevice::open(&fake::driver(), 0).unwrap();
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
    let some = [CallRow::new(1, 2)];
    for call in ["cuMemAlloc", "cuMemGetInfo", "cuMemcpyDtoDAsync", "cuMemsetD8Async", "cuStreamSynchronize"]
    {
        let mut bench = Bench::new(16);
        bench.reset(2);
        let failed = |result: Result<(), CudaError>| {
            let e = result.unwrap_err();
            let words = if call == "cuMemAlloc" { "out of memory" } else { "an illegal memory access" };
            assert!(e.to_string().contains(call) && e.to_string().contains(words), "{call}: {e}");
        };
        if ["cuMemAlloc", "cuMemGetInfo"].contains(&call) {
            fake::fail(Some(call));
            failed(bench.all(1, 0).map(drop));
            fake::fail(None);
        }
        bench.all(2, 0).unwrap();
        fake::fail(Some(call));
        if call != "cuMemGetInfo" {
            failed(bench.step(1, &some, None).map(drop));
        }
        fake::fail(None);
        bench.reset(2);
        bench.all(1, 0).unwrap();
        drop(bench);
        assert_eq!(fake::allocations().0, 0, "{call}");
    }
}

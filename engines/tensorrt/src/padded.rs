//! A call with some of the cache's rows as a call with all of them, for graphs whose caches have the rows of the call.
//!
//! On a device, gathering the rows would be one copy for each row and slot; rows that nobody asked for cost little.

use dpar_engine_api::{CacheState, CallRow, Tensor, TensorData, TensorSlice, TensorView};
use dpar_export_spec::{GraphSpec, Port};

/// The call that is run. Rows that were not asked for repeat inputs of the first one that was, see nothing but their own
/// new slots, and keep none of them.
pub(crate) struct Padded {
    inputs: Vec<(String, Tensor)>,
    /// All rows of the cache, in their order.
    pub(crate) rows: Vec<CallRow>,
    /// Where the rows that were asked for stand in it.
    pub(crate) kept: Vec<usize>,
}

/// Rows along an axis.
fn pick(view: &TensorView<'_>, axis: usize, rows: &[usize]) -> Tensor {
    fn collect<T: Copy>(data: &[T], starts: &[usize], inner: usize) -> Vec<T> {
        starts.iter().flat_map(|&start| &data[start..start + inner]).copied().collect()
    }
    let shape = view.shape();
    let (outer, count): (usize, usize) = (shape[..axis].iter().product(), shape[axis]);
    let inner: usize = shape[axis + 1..].iter().product();
    let starts: Vec<usize> =
        (0..outer).flat_map(|o| rows.iter().map(move |row| (o * count + row) * inner)).collect();
    let data = match view.data() {
        TensorSlice::F32(data) => TensorData::F32(collect(data, &starts, inner)),
        TensorSlice::F16(data) => TensorData::F16(collect(data, &starts, inner)),
        TensorSlice::BF16(data) => TensorData::BF16(collect(data, &starts, inner)),
        TensorSlice::I64(data) => TensorData::I64(collect(data, &starts, inner)),
    };
    let mut picked = shape.to_vec();
    picked[axis] = rows.len();
    Tensor::new(picked, data)
}

fn batch_at(state: &CacheState, port: Option<&Port>) -> Option<usize> {
    port?.dims.iter().position(|dim| Some(dim) == state.batch())
}

impl Padded {
    /// `None` where a checked call can be run as it is.
    pub(crate) fn new(
        spec: &GraphSpec,
        state: &CacheState,
        inputs: &[(&str, TensorView<'_>)],
        rows: &[CallRow],
    ) -> Option<Self> {
        if state.whole(rows) {
            return None;
        }
        let mut all = CallRow::all(state.rows(), 0);
        let mut from = vec![0; all.len()];
        for (i, row) in rows.iter().enumerate() {
            (all[row.row], from[row.row]) = (*row, i);
        }
        let widened = inputs.iter().map(|(name, view)| {
            let axis = batch_at(state, spec.input(name));
            let whole =
                || pick(view, 0, &(0..view.shape().first().copied().unwrap_or(0)).collect::<Vec<_>>());
            ((*name).to_owned(), axis.map_or_else(whole, |axis| pick(view, axis, &from)))
        });
        Some(Self { inputs: widened.collect(), rows: all, kept: rows.iter().map(|row| row.row).collect() })
    }

    pub(crate) fn views(&self) -> Vec<(&str, TensorView<'_>)> {
        self.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor.view())).collect()
    }

    /// What the rows that were asked for got.
    pub(crate) fn outputs(
        &self,
        spec: &GraphSpec,
        state: &CacheState,
        outputs: Vec<Option<Tensor>>,
    ) -> Vec<Option<Tensor>> {
        let own = |(port, tensor): (&Port, Option<Tensor>)| {
            let tensor = tensor?;
            Some(match batch_at(state, Some(port)) {
                Some(axis) => pick(&tensor.view(), axis, &self.kept),
                None => tensor,
            })
        };
        spec.outputs.iter().zip(outputs).map(own).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dpar_export_spec::{AxisRange, DType, Dim};

    #[test]
    fn some_rows_become_all_and_only_they_come_back() {
        let axis = |name: &str, min| AxisRange { name: name.into(), min, opt: 1, max: 8 };
        let dims = |time: &str| vec![Dim::axis(time), Dim::axis("batch"), Dim::Fixed(1), Dim::Fixed(1)];
        let spec = GraphSpec {
            name: "g".into(),
            component: "c".into(),
            inputs: vec![
                Port::new("x", DType::I64, vec![Dim::axis("batch"), Dim::axis("new")]),
                Port::new("past_key_0", DType::F32, dims("past")),
            ],
            outputs: vec![
                Port::new("y", DType::F32, vec![Dim::axis("new"), Dim::axis("batch")]),
                Port::new("new_key_0", DType::F32, dims("new")),
            ],
            axes: vec![axis("batch", 1), axis("new", 1), axis("past", 0)],
        };
        let mut state = CacheState::new(&spec).unwrap();
        state.reset(4);
        let first = CallRow::all(4, 0);
        let x = TensorView::i64([4, 1], &[0; 4]);
        assert!(Padded::new(&spec, &state, &[("x", x.clone())], &first).is_none());
        let step = state.check(&spec, &[("x", x)], &first).unwrap();
        state.appended(&step, &first);

        let rows = [CallRow::new(3, 1), CallRow::new(1, 1)];
        let inputs = [("x", TensorView::i64([2, 2], &[30, 31, 10, 11]))];
        let padded = Padded::new(&spec, &state, &inputs, &rows).unwrap();
        let wide = Tensor::i64([4, 2], vec![30, 31, 10, 11, 30, 31, 30, 31]);
        assert_eq!(padded.views(), [("x", wide.view())]);
        let row = CallRow::new;
        assert_eq!(padded.rows, [row(0, 0), row(1, 1), row(2, 0), row(3, 1)]);
        state.check(&spec, &padded.views(), &padded.rows).unwrap();
        let y = Tensor::f32([2, 4], (0..8).map(|v| v as f32).collect());
        let outputs = padded.outputs(&spec, &state, vec![Some(y), None]);
        assert_eq!(outputs, [Some(Tensor::f32([2, 2], vec![3.0, 1.0, 7.0, 5.0])), None]);
    }
}

//! The conformance suite's hostile files, given to the builder.

use dpar_engine_api::{
    Engine, EngineError, EngineErrorKind, EngineInfo, GraphFile, Session, Tensor, TensorView,
};
use dpar_engine_conformance::{ConformanceCheck, ConformanceVerdict, GraphCase, run};
use dpar_engine_tensorrt::{BuildRequest, EngineBuilder};
use dpar_export_spec::GraphSpec;

use crate::{builder, graph};

/// An engine whose graphs are prepared by building them, and which runs nothing.
struct Builds(EngineBuilder);

struct Built(GraphSpec);

impl Engine for Builds {
    fn name(&self) -> &'static str {
        "builds"
    }

    fn probe(&self) -> Result<EngineInfo, EngineError> {
        Err(EngineError::new(EngineErrorKind::Unavailable, "builds", "runs nothing"))
    }

    fn prepare(&self, graph: GraphFile<'_>) -> Result<Box<dyn Session>, EngineError> {
        self.0.build(BuildRequest::new(graph))?;
        Ok(Box::new(Built(graph.spec.clone())))
    }
}

impl Session for Built {
    fn spec(&self) -> &GraphSpec {
        &self.0
    }

    fn run_unchecked(&mut self, _: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError> {
        Err(EngineError::new(EngineErrorKind::Run, "builds", "runs nothing"))
    }
}

#[test]
fn the_builder_refuses_every_hostile_file() {
    let cases = ["attention_step", "head", "conv_decode"].map(|name| {
        let graph = graph(name);
        GraphCase::new(graph.spec, graph.path)
    });
    let outcomes = run(&Builds(builder()), &cases);
    for case in &cases {
        for check in [
            ConformanceCheck::Prepare,
            ConformanceCheck::OtherSpec,
            ConformanceCheck::TruncatedGraph,
            ConformanceCheck::Garbage,
            ConformanceCheck::MissingData,
            ConformanceCheck::TruncatedData,
        ] {
            let outcome = outcomes.iter().find(|o| o.graph == case.spec.name && o.check == check).unwrap();
            assert_eq!(outcome.verdict, ConformanceVerdict::Pass, "{outcome}");
        }
    }
}

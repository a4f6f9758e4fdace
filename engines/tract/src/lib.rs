//! tract behind the engine contract: the embedded default engine.

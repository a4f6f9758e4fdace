//! What the ports of a graph are for.

use crate::dtype::DType;

/// What a port carries, told by its name and element type. Other code asks for the role: this is the one table of the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Slots of the KV cache of a layer.
    Cache(CachePart, usize),
    /// An additive attention mask, or which tokens of a padded patch are its own.
    Mask,
    /// Tokens, positions, rows, labels.
    Index,
    /// Anything else: embeddings, logits, images.
    Data,
}

/// A part of the KV cache of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CachePart {
    /// Keys of the slots before a call.
    PastKey,
    /// Values of the slots before a call.
    PastValue,
    /// Keys of the slots of a call.
    NewKey,
    /// Values of the slots of a call.
    NewValue,
}

impl CachePart {
    const ALL: [Self; 4] = [Self::PastKey, Self::PastValue, Self::NewKey, Self::NewValue];

    fn prefix(self) -> &'static str {
        match self {
            Self::PastKey => "past_key_",
            Self::PastValue => "past_value_",
            Self::NewKey => "new_key_",
            Self::NewValue => "new_value_",
        }
    }

    /// The name of this part's port for a layer.
    pub fn port(self, layer: usize) -> String {
        format!("{}{layer}", self.prefix())
    }

    /// For the past, what its new slots are.
    pub fn new_slots(self) -> Option<Self> {
        match self {
            Self::PastKey => Some(Self::NewKey),
            Self::PastValue => Some(Self::NewValue),
            Self::NewKey | Self::NewValue => None,
        }
    }
}

impl Role {
    pub(crate) fn of(name: &str, dtype: DType) -> Self {
        let mask = || name == "mask" || name.ends_with("_mask");
        Self::cache(name).unwrap_or(match dtype {
            DType::I64 => Self::Index,
            DType::F32 if mask() => Self::Mask,
            DType::F32 | DType::F16 | DType::BF16 => Self::Data,
        })
    }

    /// The slots of a KV cache that have this name.
    pub fn cache(name: &str) -> Option<Self> {
        CachePart::ALL.into_iter().find_map(|part| {
            let layer = name.strip_prefix(part.prefix())?;
            layer.parse().ok().filter(|n: &usize| n.to_string() == layer).map(|n| Self::Cache(part, n))
        })
    }

    /// Whether it is one of the new slots of a cache.
    pub fn is_new_slots(self) -> bool {
        matches!(self, Self::Cache(CachePart::NewKey | CachePart::NewValue, _))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_a_port_is_for() {
        let of = |name: &str| Role::of(name, DType::F32);
        for (part, layer) in CachePart::ALL.into_iter().zip([0, 12, 3, 10]) {
            let role = of(&part.port(layer));
            assert_eq!(role, Role::Cache(part, layer));
            assert_eq!(role.is_new_slots(), part.new_slots().is_none());
        }
        assert_eq!(of("past_key_7"), Role::Cache(CachePart::PastKey, 7));
        for other in
            ["past_key_", "past_key_00", "past_key_x", "past_tokens", "new", "masked", "my_past_key_0"]
        {
            assert_eq!(of(other), Role::Data, "{other}");
        }
        assert_eq!((of("mask"), of("patch_mask")), (Role::Mask, Role::Mask));
        assert_eq!((Role::of("tokens", DType::I64), Role::of("mask", DType::F16)), (Role::Index, Role::Data));
    }
}

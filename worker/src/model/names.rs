//! Names of tensors: what different exporters call the same one, and which ones no network reads. Pure.
//!
//! Weights are renamed when they are opened, so that networks, messages and fingerprints know one name for
//! each tensor, whoever wrote the file.

/// Whose names they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// A CLIP text model.
    Text {
        /// It ends in a projection.
        projected: bool,
    },
    /// The noise predictor or the VAE.
    Image,
}

impl Naming {
    /// What this program calls the tensor `name`; `None` for one that no network reads.
    ///
    /// transformers up to 5.5 has a `text_model` inside of its CLIP text models, later ones do not.
    pub(crate) fn canonical(self, name: &str) -> Option<String> {
        if self.is_spare(name) {
            return None;
        }
        let bare = ["embeddings.", "encoder.", "final_layer_norm."];
        match self {
            Self::Text { .. } if bare.iter().any(|start| name.starts_with(start)) => {
                Some(format!("text_model.{name}"))
            }
            _ => Some(name.to_owned()),
        }
    }

    /// Buffers, and what training or another use of the network left behind.
    fn is_spare(self, name: &str) -> bool {
        match self {
            // A model without a projection is often cut out of one with it.
            Self::Text { projected: false } if name == "text_projection.weight" => true,
            Self::Text { .. } => {
                name == "logit_scale"
                    || name.strip_suffix("position_ids").is_some_and(|at| at.ends_with("embeddings."))
            }
            // Averages that trainers keep beside the weights.
            Self::Image => name.starts_with("model_ema."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_models_have_one_name_for_each_tensor() {
        let text = Naming::Text { projected: true };
        for name in
            ["embeddings.token_embedding.weight", "encoder.layers.0.mlp.fc1.bias", "final_layer_norm.weight"]
        {
            let full = format!("text_model.{name}");
            assert_eq!(text.canonical(name).as_ref(), Some(&full));
            assert_eq!(text.canonical(&full), Some(full));
        }
        assert_eq!(text.canonical("text_projection.weight").unwrap(), "text_projection.weight");
        assert_eq!(text.canonical("vision_model.embeddings.x").unwrap(), "vision_model.embeddings.x");
    }

    #[test]
    fn only_known_tensors_are_spare() {
        let (first, second) = (Naming::Text { projected: false }, Naming::Text { projected: true });
        for name in ["logit_scale", "embeddings.position_ids", "text_model.embeddings.position_ids"] {
            assert_eq!((first.canonical(name), second.canonical(name)), (None, None));
        }
        assert_eq!(first.canonical("text_projection.weight"), None);
        for name in ["text_projection.bias", "visual_projection.weight", "lm_head.weight", "position_ids"] {
            assert_eq!(first.canonical(name).as_deref(), Some(name));
        }
        assert_eq!(Naming::Image.canonical("model_ema.decay"), None);
        assert_eq!(
            Naming::Image.canonical("encoder.conv_in.weight").as_deref(),
            Some("encoder.conv_in.weight")
        );
    }
}

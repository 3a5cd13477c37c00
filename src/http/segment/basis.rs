//! `method=pca&basis={c}`: the colours of a basis that is fitted on a collection of patches, the same for all pictures.

use std::sync::Arc;

use super::{
    super::{
        App,
        collections::{find, model_of, patch_banks, patches},
        problem::{Code, Problem},
    },
    Options, Picture, Wanted,
};
use crate::{
    index::{Collection, PatchBank, PatchOptions},
    serving::Served,
    traces::timed,
};
use dino_vision::segment::{ColourBasis, Method, Patches, Segmentation, segment_coloured};

/// The collection that a basis is fitted on.
pub(super) struct Source {
    collection: Arc<dyn Collection>,
    empty: PatchBank,
    how: PatchOptions,
}

/// A basis, and the block whose tokens it is of.
#[derive(Clone, Debug)]
pub(super) struct Basis {
    basis: Arc<ColourBasis>,
    layer: Option<u32>,
}

impl Source {
    /// Refuses what can be known to fail before a picture is decoded.
    pub(super) async fn find(app: &App, name: &str, options: &mut Options, pictures: usize) -> Result<(Self, Arc<Served>), Problem> {
        let refused = |why: String| Err(Problem::new(Code::BadParameter, why));
        if options.method.is_some_and(|method| method != Method::Pca) || options.head.is_some() {
            return refused("basis: belongs to method pca, without a head".into());
        }
        options.method = Some(Method::Pca);
        let collection = find(app, name).await?;
        let (Some(how), Some(empty)) = (collection.spec().patches(), PatchBank::of(&*collection)) else {
            let name = collection.name();
            return refused(format!("basis: collection {name} holds pictures, and a basis is fitted on patches: name one of kind patches"));
        };
        let served = model_of(app, &*collection, options.model.as_deref())?;
        patches::check_size(app, pictures, &served, collection.spec(), how)?;
        Ok((Self { collection, empty, how }, served))
    }

    /// Longer side in pixels at which the model sees a picture.
    pub(super) fn size(&self) -> u32 {
        self.how.size
    }

    /// The basis of what the collection holds now.
    pub(super) async fn fitted(self, app: &App) -> Result<Basis, Problem> {
        let Self { collection, empty, how } = self;
        let ready = timed("load", patch_banks::ready(app, &collection, empty)).await?;
        let basis = timed("fit", patch_banks::colour_basis(app, ready)).await?;
        let Some(basis) = basis else {
            let name = collection.name();
            let detail = format!("basis: collection {name} holds no patches that differ: add pictures to it");
            return Err(Problem::new(Code::BadParameter, detail));
        };
        Ok(Basis { basis, layer: how.layer })
    }
}

impl Basis {
    pub(super) fn segmentation(&self, served: &Served, picture: &Picture, wanted: &Wanted) -> Result<Segmentation, Problem> {
        let (features, grid) = patches::features(served, &picture.inferred, self.layer)?;
        let coloured = self.basis.apply(features.view());
        // What scores are computed from.
        let of_tokens = Patches::of_features(features.view(), grid);
        Ok(segment_coloured(coloured, &of_tokens, picture.inferred.size, picture.structure, &wanted.options)?)
    }
}

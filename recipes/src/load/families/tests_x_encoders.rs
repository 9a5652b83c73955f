//! Families of X-encoders: published sizes, and values that do not fit them.

use std::path::Path;

use crate::cost::cost;
use crate::schema::{Recipe, XEncoder};
use crate::{LoadError, load};

/// The paper's recipe on the host, which computes heads of any width.
fn pretrain(sets: &[&str]) -> Result<Recipe, LoadError> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("pretrain.yaml");
    let host = ["device=host", "precision=f32"].map(str::to_owned);
    let sets = sets.iter().map(|set| format!("model.x_encoder.{set}"));
    load(&path, &host.into_iter().chain(sets).collect::<Vec<_>>()).map(|loaded| loaded.recipe)
}

/// Text of the error, with its causes and advice.
fn refused(sets: &[&str]) -> String {
    format!("{:?}", miette::Report::new(pretrain(sets).unwrap_err()))
}

#[test]
fn every_published_size_sets_its_frames_and_its_tokens() {
    // Family, size, side of the frames, visual tokens of a picture in the image stage and of the
    // last stage's 32 frames.
    for (family, size, side, image, clip) in [
        ("vjepa2_1", "vit_b", 384, 576, 16 * 576),
        ("vjepa2_1", "vit_l", 384, 576, 16 * 576),
        ("vjepa2_1", "vit_g", 384, 576, 16 * 576),
        ("vjepa2_1", "vit_gigantic", 384, 576, 16 * 576),
        ("pe", "b16", 224, 196, 32 * 196),
        ("pe", "l14", 336, 576, 32 * 576),
        ("pe", "g14", 448, 1024, 32 * 1024),
        ("siglip2", "b16", 256, 256, 32 * 256),
        ("siglip2", "l16", 256, 256, 32 * 256),
        ("siglip2", "so400m16", 256, 256, 32 * 256),
        ("siglip2", "g_opt16", 256, 256, 32 * 256),
        ("clip", "b32", 224, 49, 32 * 49),
        ("clip", "b16", 224, 196, 32 * 196),
        ("clip", "l14", 224, 256, 32 * 256),
        ("clip", "l14_336", 336, 576, 32 * 576),
    ] {
        let recipe = pretrain(&[&format!("family={family}"), &format!("size={size}")]).unwrap();
        assert_eq!(recipe.model.image_size, side, "{family} {size}");
        let tokens = |stage: usize| crate::cost::longest_sample(&recipe, &recipe.stages[stage]);
        assert_eq!([tokens(0).visual, tokens(2).visual], [image, clip], "{family} {size}");
        // A frozen encoder has no part in the backward pass.
        let plan = cost(&recipe);
        assert_eq!(plan.parameters.trainable, {
            let before = cost(&pretrain(&[]).unwrap()).parameters;
            before.trainable - before.vision_projection + plan.parameters.vision_projection
        });
    }
}

#[test]
fn pooling_makes_a_quarter_of_the_tokens_but_encodes_all() {
    let of = |sets: &[&str]| {
        let recipe = pretrain(sets).unwrap();
        let tokens = crate::cost::longest_sample(&recipe, &recipe.stages[1]).visual;
        (tokens, cost(&recipe).stages[1].sample.x_forward)
    };
    let (all, work) = of(&["family=pe"]);
    let (pooled, same_work) = of(&["family=pe", "pool=2"]);
    assert_eq!((all, pooled), (8 * 576, 8 * 144));
    assert!((work / same_work - 1.0).abs() < 1e-12);
    // By hand for 8 frames of 577 tokens: products of 12,582,912 weights in each of 24 layers and
    // of 588 · 1,024 in the map of patches, and attention within each frame.
    let tokens = 8.0 * 577.0;
    let by_hand = 2.0 * tokens * (24.0 * 12_582_912.0 + 588.0 * 1024.0)
        + 24.0 * 8.0 * 4.0 * 577.0 * 577.0 * 1024.0;
    assert!((work / by_hand - 1.0).abs() < 1e-12, "{work} {by_hand}");
}

#[test]
fn one_frame_is_an_image_for_v_jepa_2_1_only() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("pretrain.yaml");
    let frames = |family: &str, frames: usize| {
        let family = format!("model.x_encoder.family={family}");
        load(&path, &[family, format!("stages.0.frames={frames}")]).map(|_| ())
    };
    assert!(frames("vjepa2_1", 1).is_ok() && frames("vjepa2_1", 2).is_ok());
    assert!(frames("pe", 1).is_ok() && frames("pe", 3).is_ok());
    for (family, count) in [("vjepa2", 1), ("vjepa2_1", 3)] {
        let error = format!("{:?}", miette::Report::new(frames(family, count).unwrap_err()));
        assert!(error.contains("do not divide into tubelets of 2"), "{error}");
    }
}

#[test]
fn values_that_do_not_fit_a_family_are_refused_by_key() {
    for (sets, key, advice) in [
        (&["family=pe", "pool=0"][..], "model.x_encoder.pool: is 0", "at least 1"),
        (&["family=pe", "pool=7"], "24×24 patches do not divide into squares of 7×7", "such as 1"),
        (&["family=siglip2", "trainable=true"], "have no backward pass", "vjepa2_1"),
        (&["family=pe", "num_heads=512"], "heads of 2 elements", "multiple of 4"),
        (&["family=vjepa2_1", "num_heads=256"], "heads of 4 elements", "at least 6"),
        (&["family=vjepa2_1", "rope_grid=0"], "model.x_encoder.rope_grid: is 0", "at least 1"),
        (&["family=siglip2", "rope_theta=1"], "rope_theta", "unknown"),
        (&["family=pe", "size=l16"], "l16", "l14"),
        (&["family=dino"], "dino", "siglip2"),
        (&["family=clip_resnet"], "only a dual encoder can have a ResNet", "kind: dual_encoder"),
        (&["family=clip_resnet", "width=65"], "65 is odd", "even number"),
        (&["family=clip_resnet", "num_heads=3"], "2048 channels", "divisor of 32·width"),
        (&["family=clip_resnet", "layers=[3, 0, 6, 3]"], "[3, 0, 6, 3]", "[3, 4, 6, 3]"),
        (&["family=clip_resnet", "layers=[3, 4, 6]"], "layers", "4"),
        (&["family=clip_resnet", "patch_size=32"], "patch_size", "unknown"),
    ] {
        let error = refused(sets);
        assert!(error.contains(key) && error.contains(advice), "{error}");
    }
    let XEncoder::Pe(keys) = pretrain(&["family=pe"]).unwrap().model.x_encoder else {
        panic!("another family")
    };
    assert!(!keys.trainable && keys.weights.is_none(), "the weights of V-JEPA 2 do not stay");
}

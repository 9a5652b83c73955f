//! Kernels with one fault each, which the emulator must notice.

use super::{Buffer, Emulator};
use crate::attention::Mask;
use crate::attention::launch::{
    Backward, Forward, Heads, Mode, Pass, backward, forward, places, rows,
};
use crate::compile::Launch;
use crate::testing::normal;
use crate::{Device, Lengths};

const HEADS: Heads = Heads { query: 1, key_value: 1, dim: 64 };
const TOKENS: usize = 300;

/// Runs the launch of `launches` whose kernel has this name in its own, after `change` has edited
/// the kernel's source, and the others as they are.
fn run_changed(
    e: &mut Emulator,
    launches: &[Launch<Buffer>],
    name: &str,
    change: impl Fn(&str) -> String,
) {
    for launch in launches {
        let mut source = launch.kernel.source().unwrap();
        if source.name.contains(name) {
            let changed = change(&source.text);
            assert_ne!(changed, source.text, "the edit finds its place");
            source.text = changed;
        }
        e.run_source(launch, &source);
    }
}

/// Runs attention of 300 tokens after `change` has edited the kernel's source, and returns the
/// outputs.
fn attend(mode: Mode, change: impl Fn(&str) -> String) -> Vec<f32> {
    let (n, heads) = (TOKENS, HEADS);
    let lengths = Lengths::new(Device::Host, vec![0, 300]).unwrap();
    let tiles = places(&lengths, rows(Pass::forward(mode, heads.dim, Mask::Full), heads.dim));
    let mut e = Emulator::default();
    let buffers = Forward {
        q: e.bf16(&normal(1, n * heads.dim)),
        k: e.bf16(&normal(2, n * heads.dim)),
        v: e.bf16(&normal(3, n * heads.dim)),
        places: e.bytes(tiles.iter().flat_map(|x| x.to_le_bytes()).collect()),
        out: e.poison_bf16(n * heads.dim),
        lse: e.poison_f32(n),
    };
    let tiles = tiles.len() / 4;
    let launches = forward(buffers, n, tiles, heads, Mask::Full, 0.125, mode).unwrap();
    run_changed(&mut e, &launches, "forward", change);
    e.read_bf16(buffers.out)
}

/// Runs the backward pass with products of warpgroups after `change` has edited the source of its
/// largest kernel, and returns d_q before it is scaled and the gradients of keys and values.
fn gradients(change: impl Fn(&str) -> String) -> [Vec<f32>; 3] {
    let (n, heads, mode) = (TOKENS, HEADS, Mode::Warpgroups);
    let lengths = Lengths::new(Device::Host, vec![0, 300]).unwrap();
    let mut e = Emulator::default();
    let mut tiles = |pass| {
        let tiles = places(&lengths, rows(pass, heads.dim));
        (e.bytes(tiles.iter().flat_map(|x| x.to_le_bytes()).collect()), tiles.len() / 4)
    };
    let (key_places, key_tiles) = tiles(Pass::KeysWarpgroups);
    let (query_places, query_tiles) = tiles(Pass::Queries);
    let mut of = |seed| e.bf16(&normal(seed, n * heads.dim));
    let (q, k, v, out, d_out) = (of(1), of(2), of(3), of(4), of(5));
    let [d_q, d_k, d_v] = [(); 3].map(|()| e.poison_bf16(n * heads.dim));
    let (lse, delta) = (e.f32(&vec![6.0; n]), e.poison_f32(n));
    let sums = e.poison_f32(n * heads.dim);
    let buffers =
        Backward { q, k, v, out, lse, d_out, key_places, query_places, delta, sums, d_q, d_k, d_v };
    let tiles = [key_tiles, query_tiles];
    let launches = backward(buffers, n, tiles, heads, Mask::Full, 0.125, mode).unwrap();
    run_changed(&mut e, &launches, "keys", change);
    [e.read_f32(sums), e.read_bf16(d_k), e.read_bf16(d_v)]
}

/// Removes the occurrence of `part` that has number `at`.
fn without(text: &str, part: &str, at: usize) -> String {
    let (start, _) = text.match_indices(part).nth(at).expect("the source contains the part");
    format!("{}{}", &text[..start], &text[start + part.len()..])
}

#[test]
fn an_edit_that_changes_nothing_leaves_the_outputs_finite() {
    for mode in [Mode::Fast, Mode::Warpgroups] {
        let out = attend(mode, |text| format!("{text} "));
        assert!(out.iter().all(|x| x.is_finite()), "{mode:?}");
    }
    let all = gradients(|text| format!("{text} "));
    assert!(all.iter().flatten().all(|x| x.is_finite()));
}

#[test]
#[should_panic(expected = "depends on the order of threads")]
fn a_missing_barrier_before_a_tile_is_overwritten_is_noticed() {
    // The barriers of the loop: before V overwrites the last V, and before K overwrites K.
    attend(Mode::Fast, |text| without(text, "__syncthreads();", 1));
}

#[test]
#[should_panic(expected = "a product reads shared memory that its writer has not published")]
fn a_missing_fence_between_a_copy_and_a_product_is_noticed() {
    attend(Mode::Warpgroups, |text| {
        text.replace(
            "asm volatile(\"fence.proxy.async.shared::cta;\"",
            "asm volatile(\"cp.async.commit_group;\"",
        )
    });
}

#[test]
#[should_panic(expected = "a product is not waited for")]
fn a_product_that_is_not_waited_for_is_noticed() {
    attend(Mode::Warpgroups, |text| text.replace("wgmma.wait_group.sync.aligned 0;", ""));
}

#[test]
#[should_panic(expected = "a product without a fence before it")]
fn a_product_without_a_fence_is_noticed() {
    attend(Mode::Warpgroups, |text| text.replace("wgmma.fence.sync.aligned;", ""));
}

#[test]
#[should_panic(expected = "has another layout than a swizzle of 128 bytes")]
fn a_descriptor_without_a_swizzle_is_noticed() {
    attend(Mode::Warpgroups, |text| text.replace("1073741888", "64"));
}

#[test]
#[should_panic(expected = "no emulation of")]
fn an_unknown_instruction_is_refused() {
    attend(Mode::Warpgroups, |text| text.replace("m64n64k16", "m64n72k16"));
}

#[test]
#[should_panic(expected = "depends on the order of threads")]
fn a_missing_barrier_between_tiles_of_a_warpgroup_is_noticed() {
    // The barrier of the loop, after which the next tile overwrites the last one.
    attend(Mode::Warpgroups, |text| without(text, "__syncthreads();", 1));
}

#[test]
#[should_panic(expected = "a product reads shared memory that its writer has not published")]
fn score_gradients_that_are_not_published_are_noticed() {
    // The fence after the loop over strips; the first one follows the copies of a tile.
    gradients(|text| {
        without(text, "asm volatile(\"fence.proxy.async.shared::cta;\" :  :  : \"memory\");", 1)
    });
}

#[test]
fn a_missing_barrier_before_score_gradients_are_read_spoils_the_gradients_of_queries() {
    // Warps that are ahead read what others have not stored yet: poison.
    let sums = &gradients(|text| without(text, "__syncthreads();", 2))[0];
    assert!(sums.iter().any(|x| !x.is_finite()));
}

#[test]
#[should_panic(expected = "a register is written between a fence and the end of its products")]
fn sums_that_are_written_after_the_fence_are_noticed() {
    let first = "mov.f32 %0, %64;";
    gradients(|text| text.replace(first, &format!("wgmma.fence.sync.aligned; {first}")));
}

#[test]
#[should_panic(expected = "the threads of a warpgroup multiply different operands")]
fn descriptors_that_differ_within_a_warpgroup_are_noticed() {
    attend(Mode::Warpgroups, |text| text.replace("add.s64 b, b, 2;", "add.s64 b, b, threadIdx.x;"));
}

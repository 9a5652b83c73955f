//! Tests of caches and of texts on a tiny random Llama.

use vljepa_kernels::rope::Heads;
use vljepa_kernels::testing::{assert_close, assert_differs, indices, normal};
use vljepa_kernels::{Arena, Device, Lengths, Packed, Stream, Tensor};
use vljepa_recipes::schema::Initialisation;

use super::search::{Pick, chosen};
use super::{Cache, LanguageModel, Options, Prompts, Search};
use crate::layers::{LlamaSizes, Trained};
use crate::{Context, Group, Keep, LayoutBuilder, Parameters};

/// Hidden states near 1: sums of 32 terms and of 30 probabilities in f32, in another order.
const TOLERANCE: f32 = 5e-6;

struct Tiny {
    model: LanguageModel,
    parameters: Parameters,
    arena: Arena,
}

impl Tiny {
    fn new() -> Self {
        let sizes = LlamaSizes {
            hidden: 32,
            layers: 2,
            heads: Heads { query: 4, key_value: 2, dim: 8 },
            intermediate: 48,
            eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            vocabulary: 50,
            tied: true,
        };
        let mut layout = LayoutBuilder::new(Initialisation::FanIn);
        let (group, device) = (Group::YDecoder, Device::Host);
        let trained = Trained { layers: sizes.layers, table: true };
        let model = LanguageModel::llama(&mut layout, "lm", group, &sizes, trained, device);
        let layout = layout.finish();
        let mut parameters = Parameters::new(&layout, device).unwrap();
        parameters.initialise(&layout, 1).unwrap();
        Self { model, parameters, arena: Arena::new(device, usize::MAX) }
    }

    fn cx(&self) -> Context<'_> {
        Context { stream: &Stream::Host, arena: &self.arena }
    }

    /// Hidden states of a whole sequence.
    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let n = x.len() / 32;
        let lengths = Lengths::new(Device::Host, vec![0, i32::try_from(n).unwrap()]).unwrap();
        let x = Tensor::from_f32(x.to_vec(), &[n, 32]);
        let (hidden, _) =
            self.model.forward(self.cx(), &self.parameters, x, lengths, Keep::Nothing).unwrap();
        hidden.to_f32().unwrap().into_owned()
    }

    /// Hidden states of new tokens of each sequence of the cache.
    fn extend(&self, cache: &mut Cache, new: &[&[f32]]) -> Vec<Vec<f32>> {
        let mut ends = vec![0];
        for x in new {
            ends.push(ends[ends.len() - 1] + i32::try_from(x.len() / 32).unwrap());
        }
        let lengths = Lengths::new(Device::Host, ends).unwrap();
        let ranges: Vec<_> = (0..lengths.rows()).map(|row| lengths.range(row)).collect();
        let x = Tensor::from_f32(new.concat(), &[lengths.tokens(), 32]);
        let hidden = self.model.extend(self.cx(), &self.parameters, cache, x, lengths).unwrap();
        let hidden = hidden.to_f32().unwrap();
        ranges.into_iter().map(|r| hidden[r.start * 32..r.end * 32].to_vec()).collect()
    }

    fn cache(&self, sequences: usize) -> Cache {
        self.model.cache(self.cx(), &self.parameters, sequences, None).unwrap()
    }

    fn generate(&self, prompts: &[&[i32]], search: Search) -> Vec<Vec<i32>> {
        let mut ends = vec![0];
        for prompt in prompts {
            ends.push(ends[ends.len() - 1] + i32::try_from(prompt.len()).unwrap());
        }
        let tokens = Packed::new(Device::Host, prompts.concat(), ends.clone()).unwrap();
        let x = self.model.input(self.cx(), &self.parameters, &tokens).unwrap();
        let lengths = Lengths::new(Device::Host, ends).unwrap();
        let options = Options { search, max_tokens: 9, stop: vec![3, 4], forbidden: vec![0] };
        let prompts = Prompts { x, lengths, memory: None };
        self.model.generate(self.cx(), &self.parameters, prompts, &options).unwrap()
    }
}

#[test]
fn tokens_after_a_cached_prefix_equal_the_full_forward_pass() {
    let tiny = Tiny::new();
    let (a, b) = (normal(1, 20 * 32), normal(2, 13 * 32));
    let (full_a, full_b) = (tiny.forward(&a), tiny.forward(&b));
    let mut cache = tiny.cache(2);
    let mut got = [Vec::new(), Vec::new()];
    // Seven and five tokens at once, then one each, then nothing and three, then the rest.
    let mut at = [0, 0];
    for new in [[7, 5], [1, 1], [0, 3], [12, 4]] {
        let parts = [&a[at[0] * 32..][..new[0] * 32], &b[at[1] * 32..][..new[1] * 32]];
        for (got, hidden) in got.iter_mut().zip(tiny.extend(&mut cache, &parts)) {
            got.extend(hidden);
        }
        at = [at[0] + new[0], at[1] + new[1]];
    }
    assert_close("first sequence", &got[0], &full_a, TOLERANCE);
    assert_close("second sequence", &got[1], &full_b, TOLERANCE);
    let mut wrong = tiny.cache(1);
    let skipped = [&a[..7 * 32], &a[8 * 32..]].concat();
    let wrong = &tiny.extend(&mut wrong, &[&skipped])[0][7 * 32..];
    assert_differs("without a token", wrong, &full_a[8 * 32..], TOLERANCE);
}

#[test]
fn continuations_share_the_rows_of_their_prefix() {
    let tiny = Tiny::new();
    let prefix = normal(1, 30 * 32);
    let continuations = [normal(2, 4 * 32), normal(3, 32), normal(4, 9 * 32)];
    let mut cache = tiny.cache(1);
    tiny.extend(&mut cache, &[&prefix]);
    cache.select(&[0, 0, 0]);
    assert_eq!(cache.sequences(), 3);
    let new = continuations.each_ref().map(Vec::as_slice);
    let got = tiny.extend(&mut cache, &new);
    for (got, continuation) in got.iter().zip(&continuations) {
        let full = tiny.forward(&[&prefix[..], continuation].concat());
        assert_close("continuation", got, &full[30 * 32..], TOLERANCE);
        assert_differs("without the prefix", got, &tiny.forward(continuation), TOLERANCE);
    }
    // The prefix takes 30 rows, not 90.
    assert_eq!(cache.free.len(), cache.rows - 30 - 14);
}

#[test]
fn rows_of_sequences_that_ended_are_used_again() {
    let tiny = Tiny::new();
    let x = normal(1, 60 * 32);
    let mut cache = tiny.cache(1);
    let first = tiny.extend(&mut cache, &[&x[..32]]);
    assert_close("first", &first[0], &tiny.forward(&x[..32]), TOLERANCE);
    // Each round forks five sequences and keeps one: 6 · 59 rows in all, at most 64 at a time.
    let mut last = Vec::new();
    for token in x[32..].chunks_exact(32) {
        cache.select(&[0, 0, 0, 0, 0]);
        let other = vec![0.5; 32];
        let new: [&[f32]; 5] = [&other, &other, token, &other, &other];
        last = tiny.extend(&mut cache, &new).swap_remove(2);
        cache.select(&[2]);
    }
    assert_eq!(cache.rows, super::cache::FEWEST_ROWS);
    assert_close("last", &last, &tiny.forward(&x)[59 * 32..], TOLERANCE);
}

#[test]
fn a_text_does_not_depend_on_the_other_prompts() {
    let tiny = Tiny::new();
    let prompts = [indices(1, 5, 50), indices(2, 2, 50), indices(3, 9, 50), indices(4, 1, 50)];
    let all = prompts.each_ref().map(Vec::as_slice);
    for search in [Search::Greedy, Search::Beam { width: 3, length_penalty: 1.0 }] {
        let texts = tiny.generate(&all, search);
        for (prompt, text) in all.iter().zip(&texts) {
            assert_eq!(&tiny.generate(&[prompt], search)[0], text, "{search:?}");
        }
        assert!(texts.iter().any(|text| text != &texts[0]), "texts differ: {texts:?}");
        assert!(texts.concat().iter().all(|token| ![0, 3, 4].contains(token)));
    }
    let sample = |seed| Search::Sample { temperature: 1.0, seed };
    let texts = tiny.generate(&all, sample(7));
    let others = tiny.generate(&[all[0], all[3], all[2]], sample(7));
    assert_eq!((&others[0], &others[2]), (&texts[0], &texts[2]));
    // The same prompt as another one of the batch, or with another seed, has another text.
    assert_ne!(tiny.generate(&[all[2]], sample(7))[0], texts[2]);
    assert_ne!(tiny.generate(&all, sample(8)), texts);
}

#[test]
fn samples_follow_the_probabilities() {
    // p = 1/8, 1/2, 3/8 after the forbidden token is left out.
    let logits = [0.0, 9.0, 4.0_f32.ln(), 3.0_f32.ln()];
    let mut counts = [0; 4];
    for i in 0..1000 {
        let pick = Pick::Random { unit: (f64::from(i) + 0.5) / 1000.0, temperature: 1.0 };
        let [(token, _)] = chosen(pick, &logits, &[1])[..] else { panic!("one token") };
        counts[usize::try_from(token).unwrap()] += 1;
    }
    assert_eq!(counts, [125, 0, 500, 375]);
    let cold = Pick::Random { unit: 0.1, temperature: 0.01 };
    assert_eq!(chosen(cold, &logits, &[1])[0].0, 2, "low temperatures are greedy");
    assert_eq!(
        chosen(Pick::Best(2), &logits, &[1]).iter().map(|t| t.0).collect::<Vec<_>>(),
        [2, 3]
    );
    assert_eq!(chosen(Pick::Best(2), &[1.0; 4], &[])[0].0, 0, "the first of equal tokens");
}

#[test]
fn empty_prompts_are_errors_and_no_prompt_gives_no_text() {
    let tiny = Tiny::new();
    let generate = |rows: Vec<i32>| {
        let n = usize::try_from(rows[rows.len() - 1]).unwrap();
        let x = Tensor::from_f32(normal(1, n * 32), &[n, 32]);
        let lengths = Lengths::new(Device::Host, rows).unwrap();
        let options =
            Options { search: Search::Greedy, max_tokens: 2, stop: vec![], forbidden: vec![] };
        let prompts = Prompts { x, lengths, memory: None };
        tiny.model.generate(tiny.cx(), &tiny.parameters, prompts, &options)
    };
    let error = generate(vec![0, 2, 2]).unwrap_err().to_string();
    assert!(error.contains("empty at 1"), "{error}");
    assert_eq!(generate(vec![0]).unwrap(), Vec::<Vec<i32>>::new());
    assert_eq!(generate(vec![0, 2]).unwrap()[0].len(), 2);
}

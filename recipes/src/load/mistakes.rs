//! A valid recipe, and edits that make it invalid.

/// A recipe that loads without problems.
pub(super) const GOOD: &str = "\
name: base
model:
  image_size: 32
  x_encoder: {patch_size: 8, hidden_size: 64, num_layers: 2, num_heads: 4, intermediate_size: 256}
  predictor:
    num_heads: 4
    num_kv_heads: 2
    head_dim: 16
    tokenizer: tokenizer.json
  y_encoder:
    tokenizer: tokenizer.json
data:
  sources:
    clips:
      shards: clips.tar
      visual: video
      targets:
        - {from: caption, query: describe}
    images:
      shards: images-{000000..000003}.tar
      visual: image
      targets:
        - from: questions
stages:
  - name: all
    steps: 100
    batch: 8
    frames: 4
    mixture: {clips: 2, images: 1}
    learning_rate:
      peak: 1e-3
      warmup_steps: 10
optimizer:
  clip_norm: 1.0
loss:
  mask_equal_targets: true
evaluation:
  tasks:
    - name: motion
      shards: eval.tar
      kind:
        classification:
          field: motion
          candidates: [left, right]
cluster:
  ranks_per_node: 2
";

/// The replaced text, its replacement, the reported line and column, and a part of the message and
/// of the help.
pub(super) type Row = (&'static str, &'static str, usize, usize, &'static str, &'static str);

/// Mistakes of keys and types.
#[rustfmt::skip]
pub(super) const KEYS_AND_TYPES: &[Row] = &[
    ("  y_encoder:\n", "  y_encoder:\n    trainable: true\n    update: train\n", 12, 13, "`update` and `trainable` are both given", "only `update`"),
    ("  y_encoder:\n", "  y_encoder:\n    update: frozn\n", 11, 13, "`frozn` is not one of", "`frozen`"),
    ("  y_encoder:\n", "  y_encoder:\n    family: qwen_embedding\n", 11, 13, "model.y_encoder.family: `qwen_embedding` is not one of", "did you mean `qwen3_embedding`?"),
    ("  y_encoder:\n", "  y_encoder:\n    size: 8b\n", 11, 11, "model.y_encoder.size: `8b` is not one of `300m`", ""),
    ("  y_encoder:\n", "  y_encoder:\n    family: qwen3_embedding\n    dense_heads: true\n", 12, 5, "model.y_encoder: unknown key `dense_heads`", "valid keys here"),
    ("    num_heads: 4\n", "    num_heads: 4\n    layers: [0, 2]\n    num_layers: 2\n", 7, 5, "model.predictor.layers: `layers` and `first_layer` or `num_layers` are both given", "write only `layers`"),
    ("    num_heads: 4\n", "    num_heads: 4\n    num_layers: two\n", 7, 17, "model.predictor.num_layers: expected a whole number", ""),
    ("num_kv_heads: 2", "num_kv_head: 2", 7, 5, "unknown key `num_kv_head`", "did you mean `num_kv_heads`?"),
    ("    learning_rate:", "    learning_rat:", 30, 5, "unknown key `learning_rat`", "`learning_rate`"),
    ("optimizer:", "optimiser:", 33, 1, "unknown key `optimiser`", "did you mean `optimizer`?"),
    ("name: base", "colour: base\nname: base", 1, 1, "unknown key `colour`", "valid keys here are `name`"),
    ("batch: 8", "batch: eight", 27, 12, "stages.0.batch: expected a whole number, 0 or more, found the string `eight`", ""),
    ("batch: 8", "batch: '8'", 27, 12, "found the string `8`", "has no quotes: `8`"),
    ("batch: 8", "batch: 8.5", 27, 12, "found the number 8.5", ""),
    ("batch: 8", "batch: -8", 27, 12, "found the number -8", ""),
    ("batch: 8", "batch: [8]", 27, 5, "found a list", ""),
    ("batch: 8", "batch:", 27, 5, "found nothing", "give the key a value"),
    ("name: base", "name: 7", 1, 7, "name: expected a string, found the number 7", "quotes"),
    ("mask_equal_targets: true", "mask_equal_targets: yes", 36, 23, "found the string `yes`", "write `true`"),
    ("mask_equal_targets: true", "mask_equal_targets: off", 36, 23, "found the string `off`", "write `false`"),
    ("mask_equal_targets: true", "mask_equal_targets: 1", 36, 23, "expected `true` or `false`", ""),
    ("    steps: 100\n", "", 25, 5, "stages.0: the key `steps` is missing", "add `steps: …`"),
    ("visual: video", "visual: vide", 16, 15, "`vide` is not one of `image`, `video`", "did you mean `video`?"),
    ("from: questions", "from: question", 23, 17, "`question` is not one of", "`questions`"),
    ("        classification:\n", "        clasification:\n", 42, 9, "`clasification` is not", "`classification`"),
    ("          field: motion\n", "", 42, 9, "the key `field` is missing", ""),
    ("candidates: [left, right]", "candidates: 5", 44, 23, "a list of labels or the path of a JSON file", ""),
    ("candidates: [left, right]", "candidates: [left, 5]", 44, 30, "candidates.1: expected a string", "quotes"),
    ("clip_norm: 1.0", "betas: [0.9]", 34, 3, "expected a list of length 2", ""),
    ("clip_norm: 1.0", "betas: [0.9, 0.95, 0.99]", 34, 3, "expected 2 values, found 3", ""),
    ("name: base", "name: base\ninit: runs/a", 2, 7, "`runs/a` is not one of `run`, `export`, `weights`", ""),
    ("name: base", "name: base\ninit: {rum: runs/a}", 2, 8, "`rum` is not one of `run`, `export`, `weights`", "did you mean `run`?"),
    ("name: base", "name: base\ninit: {run: a, export: b}", 2, 1, "init: expected one of `run`, `export`, `weights`, found `run`, `export`", "`null` for the others"),
    ("name: base", "name: base\ninit: {run: null, export: null}", 2, 1, "found none", "give one of them a value"),
    ("name: base", "name: base\ninit: {run: }", 2, 8, "init.run: expected a string, found nothing", "give the key a value"),
    ("name: base", "name: base\ninit: run", 2, 7, "`run` needs a value", ""),
    ("mixture: {clips: 2, images: 1}", "mixture: [clips]", 29, 5, "expected keys and values, found a list", ""),
];

/// Mistakes of YAML syntax.
#[rustfmt::skip]
pub(super) const SYNTAX: &[Row] = &[
    ("    steps: 100\n", "    steps: 100\n    steps: 200\n", 27, 5, "`steps` appears twice", "keep one"),
    ("    batch: 8\n", "\tbatch: 8\n", 27, 1, "not YAML", "this is a tab"),
    ("name: base", "name: 'base", 2, 1, "not YAML", ""),
];

/// Problems that `crate::check` finds.
#[rustfmt::skip]
pub(super) const CONTRADICTIONS: &[Row] = &[
    ("name: base", "name: a/b", 1, 7, "`a/b` is not a valid name", "letters, digits"),
    ("batch: 8", "batch: 1", 27, 12, "a batch of 1 is smaller than the 2 ranks", "raise `batch`"),
    ("batch: 8", "batch: 0", 27, 12, "is 0", ""),
    ("frames: 4", "frames: 5", 28, 13, "5 frames do not divide into tubelets of 2", "such as 6"),
    ("image_size: 32", "image_size: 33", 3, 15, "33 pixels do not divide into patches of 8", "such as 32"),
    ("hidden_size: 64", "hidden_size: 66", 4, 43, "66 is not divisible by 4 heads", "such as 68"),
    ("hidden_size: 64", "hidden_size: 16", 4, 73, "three rotary axes", "at least 6"),
    ("head_dim: 16", "head_dim: 15", 8, 15, "15 is odd", "even"),
    ("    num_heads: 4\n", "    num_heads: 4\n    layers: [8, 8]\n", 7, 5, "[8, 8] has no layers", "such as [8, 16]"),
    ("    num_heads: 4\n", "    num_heads: 4\n    num_layers: 0\n", 7, 17, "[8, 8] has no layers", ""),
    ("num_kv_heads: 2", "num_kv_heads: 3", 7, 19, "4 query heads are not divisible by 3", ""),
    ("num_heads: 4\n", "num_heads: 0\n", 6, 16, "is 0", "at least 1"),
    ("    tokenizer: tokenizer.json\n  y_enc", "    max_query_tokens: 0\n    tokenizer: tokenizer.json\n  y_enc", 9, 23, "is 0", ""),
    ("{clips: 2, images: 1}", "{clip: 2, images: 1}", 29, 21, "stages.0.mixture.clip: is not in `data.sources`", "did you mean `clips`?"),
    ("{clips: 2, images: 1}", "{clips: 0, images: 0}", 29, 5, "all weights are 0", ""),
    ("{clips: 2, images: 1}", "{}", 29, 5, "is empty", ""),
    ("{clips: 2, images: 1}", "{clips: 4000000000, images: 1}", 29, 5, "add up to 4000000001", "smaller weights"),
    ("visual: image\n", "visual: image\n      frames: 2\n", 26, 5, "source `images` has 2 frames and the stage has 4", "mixing: batch"),
    ("    frames: 4\n", "    frames: 4\n    micro_batch: 0\n", 29, 18, "is 0", "whole share"),
    ("warmup_steps: 10", "warmup_steps: 101", 32, 21, "101 warm-up steps in a stage of 100 steps", ""),
    ("warmup_steps: 10", "final_fraction: 1.5", 32, 23, "1.5 is not a fraction of the peak", ""),
    ("peak: 1e-3", "peak: 0", 31, 13, "is 0", "above 0"),
    ("name: base", "name: base\ninit: {run: ''}", 2, 13, "init.run: is empty", "`init: null`"),
    ("name: base", "name: base\nprecision: bf16", 2, 12, "computes in f32 only", "device: cuda"),
    ("clip_norm: 1.0", "multipliers: {y_encodr: 0.1}", 34, 27, "is not a parameter group", "`y_encoder`"),
    ("clip_norm: 1.0", "multipliers: {predictor: -1}", 34, 28, "is -1", "0 or more"),
    ("clip_norm: 1.0", "betas: [0.9, 1.0]", 34, 16, "1 is not a decay rate", ""),
    ("clip_norm: 1.0", "weight_decay: -0.1", 34, 17, "is -0.1", ""),
    ("  mask_equal_targets: true", "  kind: l2", 36, 9, "collapses to one point", "update: frozen, projection: none"),
    ("  mask_equal_targets: true", "  kind: vic_reg\n  vic_reg: {variance: 0}", 37, 23, "0 is no factor", "variance must be above 0"),
    ("  mask_equal_targets: true", "  kind: sig_reg\n  sig_reg: {weight: 1}", 37, 21, "1 is not between 0 and 1", "0.05"),
    ("  mask_equal_targets: true", "  kind: sig_reg\n  sig_reg: {directions: 100}", 37, 25, "100 is not a multiple of 8", "1024"),
    ("  y_encoder:\n", "  embed_dim: 64\n  y_encoder:\n    projection: none\n", 10, 14, "is 64, but without a projection the shared embedding is the Y-encoder's own, of 768", "write 768"),
    ("  y_encoder:\n", "  y_encoder:\n    family: pe_text\n    max_target_tokens: 33\n", 12, 24, "33 tokens are more than the 32 learned positions", "at most 32"),
    ("  y_encoder:\n", "  y_encoder:\n    family: pe_text\n    hidden_size: 1000\n", 12, 18, "1000 is not divisible by 16 heads", "such as 1008"),
    ("  y_encoder:\n", "  y_encoder:\n    family: sonar\n    num_heads: 3\n    hidden_size: 9\n", 13, 18, "9 elements cannot hold the sinusoids", "an even number"),
    ("  mask_equal_targets: true", "  temperature: {initial_logit_scale: 100}", 36, 38, "is above max_scale 100", "ln(1/0.07)"),
    ("from: questions", "from: questions\n          query: what?", 24, 18, "each question is its own query", "remove"),
    ("          candidates: [left, right]\n", "          candidates: [left, right]\n          templates: [a clip]\n", 45, 23, "`a clip` has 0 times `{}`", "a video of {}."),
    ("          candidates: [left, right]\n", "          candidates: [left, right]\n          templates: []\n", 45, 11, "is empty", "remove it"),
    ("  y_encoder:\n", "  y_encoder:\n    update: {ema: {decay: 2}}\n", 11, 27, "2 is not between 0 and 1", "0.999"),
    ("  x_encoder: {", "  x_encoder: {transform: random_resized_crop, ", 4, 26, "evaluations cannot crop at random", "in a source"),
    ("{from: caption, query: describe}", "{from: caption, kind: x}", 18, 33, "captions have no `kind`", ""),
    ("{from: caption, query: describe}", "{from: caption, field: ''}", 18, 34, "is empty", "gpt.action"),
    ("{from: caption, query: describe}", "{from: caption, field: a.b.c.d.e.f.g.h.i}", 18, 34, "has 9 levels", "at most 8"),
    ("{from: caption, query: describe}", "{from: caption, weight: 0}", 17, 7, "all weights are 0", ""),
    ("shards: clips.tar", "shards: ftp://host/clips.tar", 15, 15, "`ftp://` is not supported", "s3, gs"),
    ("shards: clips.tar", "shards: s3://bucket/clips.tar", 15, 15, "remote shards", "`catalogue: FOLDER`"),
    ("data:\n", "data:\n  shard_cache: {folder: /scratch, gib: 0}\n", 13, 40, "is 0", "at least 1"),
    ("images-{000000..000003}.tar", "images-{3..0}.tar", 20, 15, "counts backwards", "a range is"),
    ("    - name: motion\n", "    - name: motion\n      limit: 0\n", 40, 14, "is 0", "take all"),
    ("    - name: motion\n", "    - name: motion\n      frames: 3\n", 40, 15, "3 frames do not divide", ""),
    ("candidates: [left, right]", "candidates: red", 44, 23, "`red` does not end in `.json`", "list the labels"),
    ("candidates: [left, right]", "candidates: [left]", 44, 11, "too few candidates: 1", "at least 2"),
    ("candidates: [left, right]", "candidates: [left, left]", 44, 30, "appears twice", ""),
    ("  ranks_per_node: 2", "  nodes: 2", 46, 10, "this machine is one node, not 2", "slurm"),
    ("  ranks_per_node: 2", "  scheduler: slurm\n  slurm: {time_limit: 2 days}", 47, 23, "`2 days` is not a Slurm time limit", "2-00:00:00"),
    ("  ranks_per_node: 2", "  scheduler: slurm\n  slurm: {time_limit: '5'}", 47, 3, "is 300 s, but the time limit is 300 s", ""),
    ("  ranks_per_node: 2", "  scheduler: slurm\n  slurm: {extra: [exclusive]}", 47, 19, "`exclusive` is not an sbatch option", "--option"),
    ("  ranks_per_node: 2", "  control: {host: 'node 7'}", 46, 19, "`node 7` is not a host name or IP address", "cluster.control.port"),
    ("  ranks_per_node: 2", "  control: {host: 'node7:99'}", 46, 19, "`node7:99` is not a host name or IP address", ""),
    ("  ranks_per_node: 2", "  control: {silence_s: 5}", 46, 24, "is 5", "every 15 s"),
    ("  ranks_per_node: 2", "  restart: {hang_floor_s: 1}", 46, 27, "is 1", "use 5 to 3600"),
    ("cluster:\n", "checkpoints: {every_steps: 0}\ncluster:\n", 45, 28, "is 0", "500"),
    ("evaluation:\n", "evaluation:\n  every_steps: -1\n", 38, 16, "found the number -1", ""),
    ("evaluation:\n", "checkpoints: {keep_best: {metric: motion_top}}\nevaluation:\n  every_steps: 9\n", 37, 35, "`motion_top` is no metric", "did you mean `motion_top1`?"),
    ("evaluation:\n", "checkpoints: {keep_best: {metric: motion_top5}}\nevaluation:\n  every_steps: 9\n", 37, 35, "`motion_top5` is no metric", ""),
    ("evaluation:\n", "checkpoints: {keep_best: {metric: loss}}\nevaluation:\n  every_steps: 9\n", 37, 35, "`loss` is no metric", "the metrics are motion_top1"),
    ("evaluation:\n", "checkpoints: {keep_best: {metric: motion_top1, count: 0}}\nevaluation:\n  every_steps: 9\n", 37, 55, "is 0", "or remove"),
    ("evaluation:\n", "checkpoints: {keep_best: {metric: motion_top1}}\nevaluation:\n", 37, 15, "only the last step is evaluated", "evaluation.at_samples"),
    ("evaluation:\n", "checkpoints: {keep_at: {samples_seen: [9, 9]}}\nevaluation:\n", 37, 43, "9 is not above 9", "increase"),
    ("evaluation:\n", "checkpoints: {keep_at: {samples_seen: [801]}}\nevaluation:\n", 37, 40, "801 samples are more than the 800", "lengthen"),
    ("evaluation:\n", "evaluation:\n  at_samples: [0]\n", 38, 16, "0 is not above 0", ""),
];

/// The file of a set that loads without problems.
pub(super) const SET: &str = "\
name: tiny
source: https://example.org
root: datasets/tiny
format:
  gqa: {questions: q.json, answers: a.json, images: 'images/{image_id}.jpg'}
expect: {samples: 398}
task:
  frames: 2
  kind: {question_answering: {}}
";

/// The replaced text of the set and its replacement, the task of the recipe, the file that is
/// reported, and a part of the message and of the help.
pub(super) type SetRow =
    (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str);

/// Mistakes in sets and in tasks that measure them.
#[rustfmt::skip]
pub(super) const SETS: &[SetRow] = &[
    ("root: ", "rot: ", "{set: sets/tiny.yaml}", "tiny.yaml", "unknown key `rot`", "`root`"),
    ("{image_id}", "{imageId}", "{set: sets/tiny.yaml}", "tiny.yaml", "`{imageId}` is no field", "`{image_id}`"),
    ("{image_id}", "{image_id", "{set: sets/tiny.yaml}", "tiny.yaml", "without `}`", "as `{video_id}`"),
    ("  gqa:", "  gqq:", "{set: sets/tiny.yaml}", "tiny.yaml", "`gqq` is not one of", "`gqa`"),
    ("source: https://example.org", "source: ''", "{set: sets/tiny.yaml}", "tiny.yaml", "set.source: is empty", "published"),
    ("samples: 398", "unverified: [labels]", "{set: sets/tiny.yaml}", "tiny.yaml", "names `labels`", "labels: N"),
    ("frames: 2", "frames: 3", "{set: sets/tiny.yaml}", "tiny.yaml", "3 frames do not divide", "4"),
    ("{question_answering: {}}", "retrieval", "{set: sets/tiny.yaml}", "tiny.yaml", "a set of `gqa` holds questions", "question_answering"),
    ("task:", "tasks:", "{set: sets/tiny.yaml, kind: retrieval}", "tiny.yaml", "unknown key `tasks`", ""),
    ("name: tiny", "name: tiny", "{set: sets/tiny.yml}", "recipe.yaml", "there is no file", "tiny.yaml"),
    ("name: tiny", "name: tiny", "{set: sets/tiny.yaml, shards: a.tar}", "recipe.yaml", "are both given", "keep one"),
    ("name: tiny", "name: tiny", "{set: sets/tiny.yaml, catalogue: a}", "recipe.yaml", "a set has no catalogue", "remove"),
    ("name: tiny", "name: tiny", "{name: a, kind: retrieval}", "recipe.yaml", "neither `shards` nor `set` is given", "`set: FILE`"),
    ("name: tiny", "name: tiny", "{name: a, shards: a.tar, kind: {question_answering: {}}}", "recipe.yaml", "only a set has labels", "list them"),
    ("name: tiny", "name: tiny", "{set: 5, kind: retrieval}", "recipe.yaml", "set: expected keys and values, found the number 5", ""),
];

#!/usr/bin/env python3
"""Golden outputs of causal language models in transformers: a Llama with a tied output map (logits, loss, gradients, texts)
and SONAR's text decoder, which transformers runs as the decoder of M2M100 with a memory of one vector (logits, texts).
usage: python language_model.py OUT
Texts are written one prompt at a time, without padding, in f64. They end before the token that ends them; -1 fills the rest of a row."""
import math, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM, M2M100Config, M2M100ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from vision import normal, random_weights, report, write

NEW = 12                                                     # most tokens of a text, with the one that ends it
SEARCHES = {'greedy': {}, 'beam_short': dict(num_beams=3, length_penalty=0.0), 'beam_long': dict(num_beams=3, length_penalty=2.0),
            'beam_mean': dict(num_beams=5, length_penalty=1.0)}

def prompts(seed, vocabulary, lengths):
    """Ids from 4 on, padded with 1, and a mask."""
    ids = torch.randint(4, vocabulary, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids * mask + (1 - mask), mask

def texts(ends, rows):
    """Texts of all prompts as one tensor."""
    rows = [row[:next((i for i, token in enumerate(row) if token in ends), NEW)] for row in rows]
    return torch.tensor([row + [-1] * (NEW - len(row)) for row in rows])

def endings(name, count, generate):
    """`count` tokens that end texts, those of which the texts have the most different lengths, and the texts of each search."""
    free = sum(generate(None, {}), [])
    def search(ends):
        return {f'out.{search}': texts(ends, generate(ends, how)) for search, how in SEARCHES.items()}
    lengths = lambda out: {k: (v >= 0).sum(1).tolist() for k, v in out.items()}
    variety = lambda out: sum(len(set(of)) for of in lengths(out).values()) + len(set(map(str, out.values())))
    pairs = {tuple(sorted({free[i], free[i + (count - 1) * NEW]})) for i in range(0, len(free) - (count - 1) * NEW, 2)}
    tried = {ends: search(list(ends)) for ends in pairs if len(ends) == count}
    ends, out = max(sorted(tried.items()), key=lambda item: variety(item[1]))
    print(name, 'ends with', ends, lengths(out), out['out.greedy'].tolist(), out['out.beam_mean'].tolist())
    return {'in.end': torch.tensor(ends), **out}

def livelier(weights):
    """Larger results of the branches, so that a text does not repeat its last token: the output map is the input table."""
    for name, weight in weights.items():
        if any(part in name for part in ('o_proj', 'down_proj', 'out_proj.weight', 'fc2.weight')):
            weight *= 4

def llama(name, seed, lengths, **sizes):
    c = LlamaConfig(rms_norm_eps=1e-5, rope_theta=10000.0, max_position_embeddings=128, tie_word_embeddings=True, attn_implementation='eager',
                    rope_scaling=dict(rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                      original_max_position_embeddings=32),
                    bos_token_id=2, eos_token_id=None, pad_token_id=1, **sizes)
    model = LlamaForCausalLM(c).eval()
    weights = random_weights(seed, {n: tuple(p.shape) for n, p in model.named_parameters()})
    weights['model.embed_tokens.weight'] = normal(seed + 3, c.vocab_size, c.hidden_size) * 2 / math.sqrt(c.hidden_size)
    livelier(weights)
    ids, mask = prompts(seed + 1, c.vocab_size, lengths)
    labels = torch.where(mask > 0, ids, -100)
    labels[0, :4] = -100                                     # a prompt that is not trained
    def run(dtype):
        model.to(dtype)
        p = {n: w.detach().to(dtype).clone().requires_grad_() for n, w in weights.items()}
        o = torch.func.functional_call(model, p | {'lm_head.weight': p['model.embed_tokens.weight']}, (ids, mask), {'labels': labels})
        o.loss.backward()
        return {'logits': o.logits, 'loss': o.loss[None], **{f'grad.{n}': w.grad for n, w in p.items()}}
    with_f32, out = run(torch.float32), run(torch.float64)
    report(name, {k: out[k] for k in ('logits', 'loss')}, with_f32)
    grads = [k for k in out if k.startswith('grad.')]
    print(name, f"gradients: {max(((out[k] - with_f32[k].double()).abs().max() / out[k].abs().max()).item() for k in grads):.1e}")
    model.load_state_dict(weights, strict=False); model.tie_weights(); model.double()
    def generate(end, how):
        for row, n in zip(ids, lengths):
            model.generation_config.eos_token_id = end
            yield model.generate(row[None, :n], attention_mask=torch.ones(1, n, dtype=torch.long), do_sample=False, max_new_tokens=NEW, pad_token_id=1, **how)[0, n:].tolist()
    keys = ['model_type', 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'num_key_value_heads', 'head_dim', 'intermediate_size',
            'rms_norm_eps', 'rope_theta', 'rope_scaling', 'vocab_size']
    write(sys.argv[1], name, {k: getattr(c, k) for k in keys}, weights,
          {'in.input_ids': ids, 'in.attention_mask': mask, 'in.labels': labels, **{k if k in grads else f'out.{k}': v for k, v in out.items()},
           **endings(name, 1, lambda end, how: list(generate(end, how)))})

def sonar(name, seed, count, **sizes):
    c = M2M100Config(encoder_layers=1, encoder_layerdrop=0, decoder_layerdrop=0, dropout=0, attention_dropout=0, activation_function='relu',
                     scale_embedding=True, pad_token_id=1, bos_token_id=0, eos_token_id=None, decoder_start_token_id=2,
                     max_position_embeddings=64, attn_implementation='eager', **sizes)
    model = M2M100ForConditionalGeneration(c).eval()
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if not n.startswith('model.encoder.')}
    weights = random_weights(seed, shapes)
    weights['model.shared.weight'] = normal(seed + 3, c.vocab_size, c.d_model) / math.sqrt(c.d_model)
    livelier(weights)
    model.load_state_dict(weights, strict=False); model.tie_weights()
    memory = normal(seed + 4, count, c.d_model)
    ids = torch.randint(4, c.vocab_size, (count, 6), generator=torch.Generator().manual_seed(seed + 1))
    ids[:, 0] = 2
    def run(dtype):
        model.to(dtype)
        for part in (model.model.encoder, model.model.decoder):
            part.embed_positions.weights = part.embed_positions.get_embedding(66, c.d_model, 1).to(dtype)
        with torch.no_grad():
            return {'logits': model(encoder_outputs=BaseModelOutput(memory.to(dtype)[:, None]), decoder_input_ids=ids).logits}
    with_f32, out = run(torch.float32), run(torch.float64)
    report(name, out, with_f32)
    def generate(end, how):
        model.generation_config.eos_token_id = end
        for row in range(count):
            start = ids[row:row + 1, :2]
            yield model.generate(encoder_outputs=BaseModelOutput(memory.double()[row:row + 1, None]), decoder_input_ids=start, do_sample=False,
                                 max_new_tokens=NEW, suppress_tokens=[1], pad_token_id=1, **how)[0, 2:].tolist()
    keys = ['model_type', 'd_model', 'decoder_layers', 'decoder_attention_heads', 'decoder_ffn_dim', 'vocab_size']
    write(sys.argv[1], name, {k: getattr(c, k) for k in keys}, weights,
          {'in.input_ids': ids, 'in.memory': memory, **{f'out.{k}': v for k, v in out.items()},
           **endings(name, 2, lambda end, how: list(generate(end, how)))})

if __name__ == '__main__':
    llama('llama_lm', 1100, [9, 5, 7, 2], vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
          num_key_value_heads=2, head_dim=16)
    sonar('sonar_decoder', 1200, 4, vocab_size=60, d_model=32, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=48)

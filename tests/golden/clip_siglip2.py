#!/usr/bin/env python3
"""Golden outputs of the vision towers of CLIP and SigLIP 2 (fixed resolution) in transformers.
usage: python clip_siglip2.py OUT"""
import sys
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel
from vision import normal, random_weights, report, write

def golden(name, seed, model):
    c = model.config
    weights = random_weights(seed, {n: tuple(p.shape) for n, p in model.named_parameters()})
    image = normal(seed + 1, 2, 3, c.image_size, c.image_size)
    def forward(dtype):
        model.to(dtype).load_state_dict(weights, strict=False)
        with torch.no_grad():
            o = model(pixel_values=image.to(dtype), output_hidden_states=True)
        return {'embeddings': o.hidden_states[0], 'layer0': o.hidden_states[1], 'last_block': o.hidden_states[-1],
                'last_hidden_state': o.last_hidden_state}
    in_f32, out = forward(torch.float32), forward(torch.float64)
    report(name, out, in_f32)
    keys = ['model_type', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads', 'image_size',
            'patch_size', 'hidden_act', 'layer_norm_eps']
    config = {key: getattr(c, key) for key in keys}
    # Frames are (B, T, C, H, W): two clips of one frame.
    write(sys.argv[1], name, config, weights, {'in.frames': image.unsqueeze(1), **{f'out.{k}': v for k, v in out.items()}})

clip = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=20,
                        patch_size=4, attn_implementation='eager')
golden('clip_vision', 500, CLIPVisionModel(clip).eval())
# A head of 72 elements, as in SO400M. The head of the tower is not used: the tokens are the output.
siglip = SiglipVisionConfig(hidden_size=72, intermediate_size=100, num_hidden_layers=1, num_attention_heads=1, image_size=12,
                            patch_size=4, vision_use_head=False, attn_implementation='eager')
golden('siglip2_vision', 600, SiglipVisionModel(siglip).eval())

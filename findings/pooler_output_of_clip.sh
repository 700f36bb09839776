#!/usr/bin/env bash
# In transformers, what a CLIP calls pooler_output depends on who is asked. A tower by itself (CLIPTextModel,
# CLIPVisionModel, or model.text_model) gives the pooled token before the projection. The whole CLIPModel overwrites
# it: text_model_output.pooler_output and vision_model_output.pooler_output of the same input are after the
# projection, in the place and under the name of the tower's. Where the projection keeps the width, as in the text
# tower of CLIP B/32 and B/16 (512 to 512), no shape tells them apart. Two text features of one sentence have a
# cosine of about 0 here.
#
# get_image_features and get_text_features give such an object and no tensor: features[0] is every token
# unprojected, the features are pooler_output, and those are not of length 1, though image_embeds and text_embeds of
# the whole model are.
#
# Exits with 0 while that is so, and with 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 transformers==5.24.0
"$folder/venv/bin/python" - <<'P'
import sys

import torch
import transformers

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
TOWER = {"hidden_size": 512, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8}
text = {**TOWER, "vocab_size": 60, "max_position_embeddings": 12, "bos_token_id": 58, "eos_token_id": 59}
vision = {**TOWER, "hidden_size": 768, "image_size": 32, "patch_size": 8}
config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)
model = transformers.CLIPModel(config).eval()
alone = transformers.CLIPTextModel(config.text_config).eval()
alone.load_state_dict(model.text_model.state_dict())
images, ids = torch.randn(2, 3, 32, 32), torch.tensor([[58, 3, 4, 5, 59, 59], [58, 7, 8, 59, 59, 59]])
with torch.no_grad():
    whole = model(input_ids=ids, pixel_values=images)
    words, seen = alone(input_ids=ids).pooler_output, model.vision_model(pixel_values=images).pooler_output
    read, looked = model.get_text_features(input_ids=ids), model.get_image_features(pixel_values=images)
    projected = {"text": model.text_projection(words), "vision": model.visual_projection(seen)}

same = True
for name, tower, output in (("text", words, whole.text_model_output), ("vision", seen, whole.vision_model_output)):
    found = output.pooler_output
    after = torch.allclose(found, projected[name], atol=1e-5)
    print(f"{name}: the tower's pooler_output has {tower.shape[1]} numbers, that in the whole model's output "
          f"{found.shape[1]}, and it is the projected one: {after}")
    same = same and after
cosine = torch.cosine_similarity(words, whole.text_model_output.pooler_output).abs().max()
print(f"the two of one text: cosine of at most {float(cosine):.2f}")
same = same and words.shape == whole.text_model_output.pooler_output.shape and cosine < 0.5
for name, output, unit in (("text", read, whole.text_embeds), ("image", looked, whole.image_embeds)):
    lengths = [float(rows.norm(dim=-1).mean()) for rows in (output.pooler_output, unit)]
    print(f"get_{name}_features: a {type(output).__name__}, its [0] of shape {list(output[0].shape)}, its "
          f"pooler_output of length {lengths[0]:.2f}; {name}_embeds of length {lengths[1]:.2f}")
    same = same and not torch.is_tensor(output) and output[0].ndim == 3
    same = same and abs(lengths[0] - 1) > 0.1 and abs(lengths[1] - 1) < 1e-4
print("as written above" if same else "this has changed")
sys.exit(0 if same else 1)
P

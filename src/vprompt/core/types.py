"""Types: the names of all tensor axes, written once.

Axes: `batch` images, `sequence` tokens of one image, `dim` width of a token, `feature_dim` width
of a pooled feature, `count` prompt tokens, `sources` prompts of a pool, `classes` of a task. Where
a text tower reads, `batch` counts texts. Annotations become run-time checks while testing.
"""

from typing import TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

Images: TypeAlias = Float[Tensor, "batch 3 height width"]
Tokens: TypeAlias = Float[Tensor, "batch sequence dim"]
ReadTokens: TypeAlias = Float[Tensor, "batch read dim"]  # a sequence, or the first of it
Features: TypeAlias = Float[Tensor, "batch feature_dim"]
JoinedFeatures: TypeAlias = Float[Tensor, "batch joined_dim"]  # several features side by side
Labels: TypeAlias = Int[Tensor, " batch"]
ClassSets: TypeAlias = Float[Tensor, "batch classes"]  # 1 where an image shows a class, else 0
Numbers: TypeAlias = Float[Tensor, " batch"]
Targets: TypeAlias = Labels | ClassSets | Numbers
PromptTokens: TypeAlias = Float[Tensor, "count dim"]
SamplePromptTokens: TypeAlias = Float[Tensor, "batch count dim"]
PromptRows: TypeAlias = Float[Tensor, "prompts count dim"]  # one set for all, one each, or shared
Present: TypeAlias = Bool[Tensor, "prompts count"]  # which rows are there; others fill up
Which: TypeAlias = Int[Tensor, " batch"]  # the prompt of every image
TextIds: TypeAlias = Int[Tensor, "batch sequence"]
WordTokens: TypeAlias = Float[Tensor, "batch words dim"]  # one more where a token is added
TextEnds: TypeAlias = Int[Tensor, " batch"]
ClassFeatures: TypeAlias = Float[Tensor, "classes feature_dim"]
Blocks: TypeAlias = Int[Tensor, " count"]
Weights: TypeAlias = Float[Tensor, " sources"]
LayerWeights: TypeAlias = Float[Tensor, "layers sources"]
SourceFeatures: TypeAlias = Float[Tensor, "sources batch feature_dim"]
SeenFeatures: TypeAlias = Float[Tensor, "sources seen feature_dim"]  # seen is 0 where none were
SourceTokens: TypeAlias = Float[Tensor, "sources tokens dim"]
TargetTokens: TypeAlias = Float[Tensor, "tokens dim"]
SourceEmbeddings: TypeAlias = Float[Tensor, "sources feature_dim"]
ValFeatures: TypeAlias = Float[Tensor, "sources val_images feature_dim"]
ValLabels: TypeAlias = Int[Tensor, " val_images"]
SourceGradients: TypeAlias = Float[Tensor, "sources count dim"]  # count is 0 where none were asked
SourceProbabilities: TypeAlias = Float[Tensor, "batch _"]  # over the source's classes
OwnFeatures: TypeAlias = Float[Tensor, "source_batch feature_dim"]  # of a source's own images
OwnLabels: TypeAlias = Int[Tensor, " source_batch"]

"""Networks on graphs, sets and tables: gathering, scattering, pooling, embedding bags."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.zoo.models import Case, classify

NODES, EDGES, FEATURES = 12, 40, 16  # of each graph


def graphs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random graphs as one: features (nodes, 16), edges (2, edges) from and to, and which graph a node is of."""
    edges = torch.randint(NODES, (batch, 2, EDGES)) + NODES * torch.arange(batch)[:, None, None]
    return (
        torch.randn(batch * NODES, FEATURES), edges.transpose(0, 1).flatten(1),
        torch.arange(batch).repeat_interleave(NODES),
    )  # fmt: skip


class GraphConv(nn.Module):
    """The mean of messages from a node's neighbours, made by an MLP from both ends of an edge."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.message = nn.Sequential(nn.Linear(2 * inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs))
        self.own = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        start, end = edges
        messages = self.message(torch.cat([x[start], x[end]], dim=1))
        total = torch.zeros(x.shape[0], messages.shape[1], device=x.device, dtype=messages.dtype)
        total = total.scatter_add(0, end[:, None].expand_as(messages), messages)
        degree = torch.zeros(x.shape[0], device=x.device).index_add(0, end, torch.ones(end.shape[0], device=x.device))
        return self.own(x) + total / degree.clamp(min=1)[:, None]


class GraphAttention(nn.Module):
    """GAT (Velickovic et al. 2018): neighbours weighted by a softmax over each node's incoming edges."""

    def __init__(self, inputs: int, heads: int, each: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(inputs, heads * each, bias=False)
        self.from_start, self.from_end = (nn.Parameter(torch.randn(heads, each) * each**-0.5) for _ in range(2))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        start, end = edges
        h = self.project(x).unflatten(1, (self.heads, -1))
        scores = (h * self.from_start).sum(-1)[start] + (h * self.from_end).sum(-1)[end]
        weights = self._softmax(F.leaky_relu(scores.float(), 0.2), end, x.shape[0])
        weighted = weights[:, :, None] * h[start]
        out = torch.zeros(x.shape[0], *weighted.shape[1:], device=x.device).index_add(0, end, weighted)
        return F.elu(out.flatten(1))

    @staticmethod
    def _softmax(scores: Tensor, end: Tensor, nodes: int) -> Tensor:
        """Over the edges that end at the same node."""
        index = end[:, None].expand_as(scores)
        largest = torch.full((nodes, scores.shape[1]), -torch.inf, device=scores.device)
        largest = largest.scatter_reduce(0, index, scores.detach(), "amax")
        raised = torch.exp(scores - largest[end])
        return raised / torch.zeros_like(largest).scatter_add(0, index, raised)[end]


class GraphClassifier(nn.Module):
    """Two layers, the sum over each graph's nodes, scores."""

    def __init__(self, first: nn.Module, second: nn.Module, width: int) -> None:
        super().__init__()
        self.first, self.second, self.norm = first, second, nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x, edges)))
        h = self.second(h, edges)
        pooled = torch.zeros(x.shape[0] // NODES, h.shape[1], device=x.device, dtype=h.dtype)
        return self.head(pooled.index_add(0, graph, h))


def _graph_case(name: str, build: Callable[[], nn.Module], seed: int, batch: int) -> Case:
    torch.manual_seed(seed)
    model = build()
    return Case(name, model, graphs(batch), classify(batch), batched=(0, 1, 0))


def graph_network(*, seed: int = 0, batch: int = 8, width: int = 32) -> Case:
    """Message passing with gather and scatter."""
    return _graph_case(
        "graph_network",
        lambda: GraphClassifier(GraphConv(FEATURES, width), GraphConv(width, width), width),
        seed,
        batch,
    )


def graph_attention(*, seed: int = 0, batch: int = 8, width: int = 32) -> Case:
    """Attention over edges, with a scattered softmax."""
    return _graph_case(
        "graph_attention",
        lambda: GraphClassifier(GraphAttention(FEATURES, 2, 16), GraphAttention(width, 2, 16), width),
        seed,
        batch,
    )


class PointNet(nn.Module):
    """Points (N, P, 3) through a shared MLP, the maximum over points, scores (Qi et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.turn = nn.Linear(width, 9)
        self.first, self.second = self._shared(3, width), self._shared(3, width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))

    @staticmethod
    def _shared(inputs: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv1d(inputs, width, 1),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Conv1d(width, width, 1),
            nn.BatchNorm1d(width),
        )

    def forward(self, points: Tensor) -> Tensor:
        turn = self.turn(self.first(points.transpose(1, 2)).amax(2)).view(-1, 3, 3)
        turned = points @ (turn + torch.eye(3, device=points.device, dtype=turn.dtype))
        return self.head(self.second(turned.transpose(1, 2)).max(2).values)


def pointnet(*, seed: int = 0, batch: int = 4, width: int = 32) -> Case:
    """A classifier of point clouds."""
    torch.manual_seed(seed)
    return Case("pointnet", PointNet(width), (torch.randn(batch, 64, 3),), classify(batch))


class Recommender(nn.Module):
    """DLRM (Naumov et al. 2019): features (N, 8) and bags of ids (N, tables, 4) to a score, by dot products."""

    def __init__(self, tables: int, rows: int, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, width, mode="sum") for _ in range(tables))
        self.bottom = nn.Sequential(nn.Linear(8, 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.ReLU())
        pairs = tables * (tables + 1) // 2
        self.top = nn.Sequential(nn.Linear(width + pairs, 2 * width), nn.ReLU(), nn.Linear(2 * width, 1))
        self.register_buffer("pairs", torch.tril_indices(tables + 1, tables + 1, -1))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        first = self.bottom(dense)
        vectors = torch.stack([first, *(table(ids[:, i]) for i, table in enumerate(self.tables))], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        return self.top(torch.cat([first, products[:, self.pairs[0], self.pairs[1]]], dim=1)).squeeze(1)


def recommender(*, seed: int = 0, batch: int = 64, width: int = 16) -> Case:
    """Embedding bags and their interactions."""
    torch.manual_seed(seed)
    model, labels = Recommender(3, 50, width), torch.randint(2, (batch,)).float()
    args = torch.randn(batch, 8), torch.randint(50, (batch, 3, 4))
    return Case("recommender", model, args, lambda scores: F.binary_cross_entropy_with_logits(scores.float(), labels))


BUILDERS: Sequence[Callable[..., Case]] = (graph_network, graph_attention, pointnet, recommender)

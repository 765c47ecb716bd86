"""Networks on graphs with edges that carry something: gates, distances, directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.zoo.models import Case, classify
from tools.zoo.models.graphs import FEATURES, NODES, graphs


def summed(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Rows added up where they have the same index: (E, C) to (count, C)."""
    return values.new_zeros(count, values.shape[1]).index_add(0, index, values)


def graph_case(name: str, build: Callable[[], nn.Module], *, batch: int, seed: int) -> Case:
    """A classifier of graphs: features, edges, which graph a node is of."""
    torch.manual_seed(seed)
    return Case(name, build().train(), graphs(batch), classify(batch), batched=(0, 1, 0))


class GIN(nn.Module):
    """Sums of neighbours through an MLP with BatchNorm, a learned weight for the node itself (Xu et al. 2019)."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        sizes = [FEATURES] + [width] * layers
        self.own = nn.Parameter(torch.zeros(layers))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Linear(b, b), nn.BatchNorm1d(b), nn.ReLU())
            for a, b in pairwise(sizes)
        )
        self.heads = nn.ModuleList(nn.Linear(size, 10) for size in sizes)

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        count = x.shape[0] // NODES
        scores = self.heads[0](summed(x, graph, count))
        for own, layer, head in zip(self.own, self.layers, self.heads[1:], strict=True):
            x = layer((1 + own) * x + summed(x[edges[0]], edges[1], x.shape[0]))
            scores = scores + head(F.dropout(summed(x, graph, count), 0.2, self.training))
        return scores


def gin(*, seed: int = 0, batch: int = 8) -> Case:
    """Isomorphism network with jumping knowledge."""
    return graph_case("gin", lambda: GIN(32, 3), batch=batch, seed=seed)


class GatedEdges(nn.Module):
    """Edges hold features that gate messages, normalized over each node's incoming edges (Bresson and Laurent 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own, self.other, self.start, self.end, self.edge = (nn.Linear(width, width) for _ in range(5))
        self.node_norm, self.edge_norm = nn.BatchNorm1d(width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor, e: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        start, end = edges
        made = self.edge(e) + self.start(x)[start] + self.end(x)[end]
        gates = torch.sigmoid(made)
        total = summed(gates * self.other(x)[start], end, x.shape[0])
        weight = summed(gates, end, x.shape[0])
        moved = self.own(x) + total / (weight + 1e-6)
        return x + F.relu(self.node_norm(moved)), e + F.relu(self.edge_norm(made))


class GatedGraph(nn.Module):
    """Gated layers, the mean over each graph's nodes, scores."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.nodes, self.ends = nn.Linear(FEATURES, width), nn.Linear(2 * FEATURES, width)
        self.layers, self.head = nn.ModuleList(GatedEdges(width) for _ in range(2)), nn.Linear(width, 10)

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        h, e = self.nodes(x), self.ends(torch.cat([x[edges[0]], x[edges[1]]], 1))
        for layer in self.layers:
            h, e = layer(h, e, edges)
        return self.head(summed(h, graph, x.shape[0] // NODES) / NODES)


def gated_graph(*, seed: int = 0, batch: int = 8) -> Case:
    """Messages with gates."""
    return graph_case("gated_graph", lambda: GatedGraph(32), batch=batch, seed=seed)


class MessagePassing(nn.Module):
    """Messages by a matrix that each edge makes, nodes updated by a GRU, attention over nodes (Gilmer et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.enter, self.update = width, nn.Linear(FEATURES, width), nn.GRUCell(width, width)
        self.matrix = nn.Sequential(nn.Linear(2 * FEATURES, 32), nn.ReLU(), nn.Linear(32, width * width))
        self.gate, self.head = nn.Linear(2 * width, width), nn.Linear(width, 10)

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        start, end = edges
        first = h = torch.tanh(self.enter(x))
        matrices = self.matrix(torch.cat([x[start], x[end]], 1)).view(-1, self.width, self.width)
        for _ in range(2):
            messages = torch.bmm(matrices, h[start].unsqueeze(2)).squeeze(2)
            h = self.update(summed(messages, end, x.shape[0]), h)
        read = torch.sigmoid(self.gate(torch.cat([h, first], 1))) * torch.tanh(h)
        return self.head(summed(read, graph, x.shape[0] // NODES))


def message_passing(*, seed: int = 0, batch: int = 8) -> Case:
    """A message-passing network with a GRU for its nodes."""
    return graph_case("message_passing", lambda: MessagePassing(16), batch=batch, seed=seed)


class EdgeAttention(nn.Module):
    """GATv2 (Brody et al. 2022): the slope comes before the score, the softmax is over a node's incoming edges."""

    def __init__(self, inputs: int, heads: int, each: int) -> None:
        super().__init__()
        self.heads, self.start, self.end = heads, nn.Linear(inputs, heads * each), nn.Linear(inputs, heads * each)
        self.score = nn.Parameter(torch.randn(heads, each) * each**-0.5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        start, end = edges
        left, right = (make(x).unflatten(1, (self.heads, -1)) for make in (self.start, self.end))
        scores = (F.leaky_relu(left[start] + right[end], 0.2) * self.score).sum(-1)
        index = end[:, None].expand_as(scores)
        top = scores.new_full((x.shape[0], self.heads), -torch.inf).scatter_reduce(0, index, scores, "amax")
        raised = (scores - top[end]).exp()
        weights = raised / (scores.new_zeros(x.shape[0], self.heads).scatter_add(0, index, raised)[end] + 1e-16)
        weights = F.dropout(weights, 0.1, self.training)
        return summed((weights[:, :, None] * left[start]).flatten(1), end, x.shape[0])


class EdgeAttentionClassifier(nn.Module):
    """Two layers, the second of one head; ELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = EdgeAttention(FEATURES, 4, width // 4), EdgeAttention(width, 1, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        h = self.second(F.elu(self.first(x, edges)), edges)
        return self.head(summed(h, graph, x.shape[0] // NODES))


def edge_attention(*, seed: int = 0, batch: int = 8) -> Case:
    """Attention over edges, its maximum differentiated as well."""
    return graph_case("edge_attention", lambda: EdgeAttentionClassifier(32), batch=batch, seed=seed)


def molecules(batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Graphs with a place in space for each node: kinds (nodes,), places (nodes, 3), edges, graphs."""
    _, edges, graph = graphs(batch)
    return torch.randint(8, (batch * NODES,)), 1.5 * torch.randn(batch * NODES, 3), edges, graph


def energy_case(name: str, build: Callable[[], nn.Module], *, batch: int, seed: int) -> Case:
    """A model that gives each molecule a number."""
    torch.manual_seed(seed)
    model, args, wanted = build().train(), molecules(batch), torch.randn(batch)
    return Case(name, model, args, lambda out: F.mse_loss(out.float(), wanted), batched=(0, 0, 1, 0))


class EquivariantLayer(nn.Module):
    """Messages from distances, places moved along differences (Satorras et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.message = nn.Sequential(nn.Linear(2 * width + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.attend = nn.Sequential(nn.Linear(width, 1), nn.Sigmoid())
        self.move = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1, bias=False), nn.Tanh())
        self.update = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, h: Tensor, x: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        start, end = edges
        difference = x[start] - x[end]
        squared = difference.square().sum(1, keepdim=True)
        message = self.message(torch.cat([h[start], h[end], squared], 1))
        message = message * self.attend(message)
        direction = difference / (squared.sqrt() + 1)
        x = x + summed(direction * self.move(message), end, x.shape[0])
        return h + self.update(torch.cat([h, summed(message, end, h.shape[0])], 1)), x


class EGNN(nn.Module):
    """Kinds and places to a number for each molecule."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kinds, self.layers = nn.Embedding(8, width), nn.ModuleList(EquivariantLayer(width) for _ in range(2))
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, kinds: Tensor, places: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        h = self.kinds(kinds)
        for layer in self.layers:
            h, places = layer(h, places, edges)
        return summed(self.head(h), graph, kinds.shape[0] // NODES).squeeze(1)


def egnn(*, seed: int = 0, batch: int = 8) -> Case:
    """An equivariant network."""
    case = energy_case("egnn", lambda: EGNN(32), batch=batch, seed=seed)
    kinds, places, edges, graph = case.args
    # a root has no derivative at 0: edges from a node to itself lead to the next one of its graph
    start, end = edges
    end = torch.where(start == end, start - start % NODES + (start + 1) % NODES, end)
    return Case(case.name, case.model, (kinds, places, torch.stack([start, end]), graph), case.loss, case.batched)


class ContinuousFilter(nn.Module):
    """Neighbours weighted by a filter of their distance, smeared over Gaussians (Schuett et al. 2017)."""

    def __init__(self, width: int, gaussians: int) -> None:
        super().__init__()
        self.filter = nn.Sequential(nn.Linear(gaussians, width), Shifted(), nn.Linear(width, width))
        self.enter, self.leave = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.last = nn.Linear(width, width)

    def forward(self, h: Tensor, smeared: Tensor, cut: Tensor, edges: Tensor) -> Tensor:
        weights = self.filter(smeared) * cut
        moved = summed(self.enter(h)[edges[0]] * weights, edges[1], h.shape[0])
        return h + self.last(F.softplus(self.leave(moved)) - 0.6931)


class Shifted(nn.Module):
    """log(1 + exp(x)) - log 2, which is 0 at 0."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x) - 0.6931


class SchNet(nn.Module):
    """Kinds and places to a number for each molecule; distances beyond the cutoff count for nothing."""

    def __init__(self, width: int, gaussians: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff, self.kinds = cutoff, nn.Embedding(8, width)
        self.register_buffer("centres", torch.linspace(0, cutoff, gaussians))
        self.layers = nn.ModuleList(ContinuousFilter(width, gaussians) for _ in range(2))
        self.head = nn.Sequential(nn.Linear(width, width // 2), Shifted(), nn.Linear(width // 2, 1))

    def forward(self, kinds: Tensor, places: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        distance = (places[edges[0]] - places[edges[1]]).square().sum(1).add(1e-9).sqrt()
        width = self.centres[1] - self.centres[0]
        smeared = torch.exp(-0.5 * ((distance[:, None] - self.centres) / width).square())
        cut = 0.5 * (torch.cos(distance * torch.pi / self.cutoff) + 1) * (distance < self.cutoff)
        h = self.kinds(kinds)
        for layer in self.layers:
            h = layer(h, smeared, cut[:, None], edges)
        return summed(self.head(h), graph, kinds.shape[0] // NODES).squeeze(1)


def schnet(*, seed: int = 0, batch: int = 8) -> Case:
    """Continuous filters."""
    return energy_case("schnet", lambda: SchNet(32, 24, 4.0), batch=batch, seed=seed)


BUILDERS: Sequence[Callable[..., Case]] = (gin, gated_graph, message_passing, edge_attention, egnn, schnet)

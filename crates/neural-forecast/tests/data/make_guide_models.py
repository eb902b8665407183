#!/usr/bin/env python3
"""Makes guide_*.safetensors and guide_*.json: PyTorch modules of the integration guide's two models
with their windows and forecasts, for tests/gpu_integration.rs.

Made with torch 2.15.0 and safetensors, seed 20261121. Run it in this folder.
"""
import json
import torch
from safetensors.torch import save_file


class Lstm(torch.nn.Module):
    def __init__(self, features, hidden, layers, outputs, bidirectional):
        super().__init__()
        self.rnn = torch.nn.LSTM(features, hidden, layers, batch_first=True, bidirectional=bidirectional)
        self.head = torch.nn.Linear(hidden * (2 if bidirectional else 1), outputs)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Encoder(torch.nn.Module):
    def __init__(self, features, d, heads, layers, ff, outputs):
        super().__init__()
        self.embed = torch.nn.Linear(features, d)
        layer = torch.nn.TransformerEncoderLayer(
            d, heads, ff, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = torch.nn.Linear(d, outputs)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x))[:, -1])


def make(name, module, shape):
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            # Every parameter matters to the forecast, norms and zero biases included.
            parameter.add_(0.3 * torch.randn_like(parameter))
            # Weights are single precision, so that the forecast is theirs to the last digit.
            parameter.copy_(parameter.float().double())
        x = torch.randn(*shape).double().float().double()
        y = module(x)
    save_file({k: v.float().contiguous() for k, v in module.state_dict().items()}, f"{name}.safetensors")
    with open(f"{name}.json", "w") as file:
        json.dump({"x_shape": list(x.shape), "x": x.flatten().tolist(), "y": y.flatten().tolist()}, file)
        file.write("\n")


torch.manual_seed(20261121)
make("guide_lstm", Lstm(3, 5, 2, 4, True), (2, 7, 3))
make("guide_transformer", Encoder(3, 8, 2, 2, 12, 4), (2, 6, 3))

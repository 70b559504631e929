"""A residual network in the style of torchvision, for small images.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
"""

from torch import nn


def conv3x3(in_planes, out_planes, stride=1):
    """Return a convolution that keeps the size of the image, or divides it by the stride."""
    return nn.Conv2d(in_planes, out_planes, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two convolutions with batch normalisation, added to their input."""

    def __init__(self, inplanes, planes, stride=1):
        super().__init__()
        self.conv1 = conv3x3(inplanes, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(inplanes, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x):
        """Return (n, planes, height / stride, width / stride)."""
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """Stages of blocks; each stage but the first halves the image and doubles the channels."""

    def __init__(self, layers, width, num_classes):
        """Make a network for images of one channel.

        Args:
            layers: blocks of each stage.
            width: channels of the first stage.
            num_classes: of the outputs.
        """
        super().__init__()
        self.inplanes = width
        self.conv1 = conv3x3(1, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.stages = nn.Sequential(
            *(
                self._make_layer(width * 2**stage, blocks, stride=2 if stage else 1)
                for stage, blocks in enumerate(layers)
            )
        )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(self.inplanes, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _make_layer(self, planes, blocks, stride):
        layers = []
        for block in range(blocks):
            layers.append(BasicBlock(self.inplanes, planes, stride if block == 0 else 1))
            self.inplanes = planes
        return nn.Sequential(*layers)

    def forward(self, x):
        """Return the logits (n, num_classes) of images (n, 1, height, width)."""
        x = self.stages(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.avgpool(x).flatten(1))

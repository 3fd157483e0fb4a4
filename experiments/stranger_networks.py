"""Networks of other projects for `strangers.py`: a name, the package that it needs, and a function that makes it."""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

NETWORKS = {}


def network(name, package=None):
    """Add a function that returns a network and its inputs."""

    def add(build):
        NETWORKS[name] = package, build
        return build

    return add


def image(size=128, batch=1, channels=3):
    return (torch.rand(batch, channels, size, size),)


# transformers

_HF = dict(hidden_sizes=[16, 32, 64, 64], depths=[2, 2, 2, 2])


@network("transformers ResNet", "transformers")
def hf_resnet():
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(embedding_size=16, layer_type="basic", **_HF)), image()


@network("transformers ConvNext", "transformers")
def hf_convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification(ConvNextConfig(**_HF)), image()


@network("transformers ConvNextV2", "transformers")
def hf_convnext_v2():
    from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

    return ConvNextV2ForImageClassification(ConvNextV2Config(**_HF)), image()


@network("transformers RegNet", "transformers")
def hf_regnet():
    from transformers import RegNetConfig, RegNetForImageClassification

    return RegNetForImageClassification(RegNetConfig(embedding_size=16, groups_width=8, **_HF)), image()


@network("transformers MobileNetV1", "transformers")
def hf_mobilenet_v1():
    from transformers import MobileNetV1Config, MobileNetV1ForImageClassification

    config = MobileNetV1Config(depth_multiplier=0.5, tf_padding=False)
    return MobileNetV1ForImageClassification(config), image()


@network("transformers MobileNetV2", "transformers")
def hf_mobilenet_v2():
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.5, tf_padding=False)
    return MobileNetV2ForImageClassification(config), image()


@network("transformers MobileNetV2, TensorFlow's padding", "transformers")
def hf_mobilenet_v2_tf():
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.5)), image()


@network("transformers UperNet on ConvNext", "transformers")
def hf_upernet():
    from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation

    backbone = ConvNextConfig(**_HF, out_features=["stage1", "stage2", "stage3", "stage4"])
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=32, num_labels=5, auxiliary_in_channels=64, pool_scales=[1, 2]
    )
    return UperNetForSemanticSegmentation(config), image()


@network("transformers Swin2SR", "transformers")
def hf_swin2sr():
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

    config = Swin2SRConfig(image_size=32, embed_dim=16, depths=[1], num_heads=[2], window_size=4)
    return Swin2SRForImageSuperResolution(config), image(32)


# diffusers


def _blocks(name, count, **rest):
    return dict(block_out_channels=(16, 32, 32)[:count], layers_per_block=1, norm_num_groups=8, **rest)


@network("diffusers AutoencoderKL", "diffusers")
def autoencoder_kl():
    from diffusers import AutoencoderKL

    kinds = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    return AutoencoderKL(**_blocks("", 2, **kinds)), image(64)


@network("diffusers VQModel", "diffusers")
def vq_model():
    from diffusers import VQModel

    kinds = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    return VQModel(**_blocks("", 2, **kinds)), image(64)


@network("diffusers UNet2DModel", "diffusers")
def unet_2d():
    from diffusers import UNet2DModel

    down, up = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    return UNet2DModel(**_blocks("", 3, down_block_types=down, up_block_types=up)), (*image(64), 10)


@network("diffusers UNet2DConditionModel", "diffusers")
def unet_2d_condition():
    from diffusers import UNet2DConditionModel

    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    model = UNet2DConditionModel(
        **_blocks("", 2, down_block_types=down, up_block_types=up), cross_attention_dim=16, attention_head_dim=4
    )
    return model, (torch.rand(1, 4, 64, 64), 10, torch.rand(1, 7, 16))


@network("diffusers AutoencoderTiny", "diffusers")
def autoencoder_tiny():
    from diffusers import AutoencoderTiny

    channels, blocks = (16,) * 4, dict(num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1))
    return AutoencoderTiny(encoder_block_out_channels=channels, decoder_block_out_channels=channels, **blocks), image()


# ultralytics


def _yolo(name, kind="DetectionModel"):
    def build():
        import ultralytics.nn.tasks as tasks

        return getattr(tasks, kind)(name, verbose=False), image()

    return build


network("ultralytics yolov8n", "ultralytics")(_yolo("yolov8n.yaml"))
network("ultralytics yolo11n", "ultralytics")(_yolo("yolo11n.yaml"))
network("ultralytics yolov5n", "ultralytics")(_yolo("yolov5n.yaml"))
network("ultralytics yolov8n-seg", "ultralytics")(_yolo("yolov8n-seg.yaml", "SegmentationModel"))
network("ultralytics yolov8n-pose", "ultralytics")(_yolo("yolov8n-pose.yaml", "PoseModel"))
network("ultralytics yolov8n-cls", "ultralytics")(_yolo("yolov8n-cls.yaml", "ClassificationModel"))


# torchvision's detectors


def _detector(name, backbone="mobilenet_v3_large"):
    def build():
        from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
        from torchvision.models.detection import backbone_utils as utils

        sizes = dict(min_size=128, max_size=160)
        if name == "SSDlite":
            return torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None), ()
        kind = {"FasterRCNN": FasterRCNN, "MaskRCNN": MaskRCNN, "RetinaNet": RetinaNet, "KeypointRCNN": KeypointRCNN}
        if backbone == "resnet18":
            made = utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None)
            return kind[name](made, 5, rpn_post_nms_top_n_test=50, **sizes), ()
        made = utils.resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4],
            extra_blocks=torchvision.ops.feature_pyramid_network.LastLevelP6P7(256, 256),
        )  # fmt: skip
        return RetinaNet(made, 5, **sizes), ()

    def with_images():
        model, _ = build()
        return model, ([torch.rand(3, 128, 160)],)

    return with_images


network("torchvision FasterRCNN")(_detector("FasterRCNN", "resnet18"))
network("torchvision MaskRCNN")(_detector("MaskRCNN", "resnet18"))
network("torchvision RetinaNet")(_detector("RetinaNet"))
network("torchvision SSDlite")(_detector("SSDlite"))


@network("torchvision RAFT small")
def raft():
    return torchvision.models.optical_flow.raft_small(), (*image(128), *image(128), 2)


# segmentation_models_pytorch, MONAI, efficientnet_pytorch


def _smp(kind):
    def build():
        import segmentation_models_pytorch as smp

        return getattr(smp, kind)("resnet18", encoder_weights=None), image()

    return build


for _kind in ("Unet", "UnetPlusPlus", "FPN", "Linknet", "MAnet", "PAN", "PSPNet", "DeepLabV3Plus"):
    network(f"segmentation_models_pytorch {_kind}", "segmentation_models_pytorch")(_smp(_kind))


@network("MONAI UNet 3-d", "monai")
def monai_unet():
    from monai.networks.nets import UNet

    return UNet(3, 1, 2, (8, 16, 32), (2, 2), num_res_units=1), (torch.rand(1, 1, 16, 64, 64),)


@network("MONAI SegResNet", "monai")
def monai_segresnet():
    from monai.networks.nets import SegResNet

    return SegResNet(3, 8, in_channels=1), (torch.rand(1, 1, 16, 64, 64),)


@network("MONAI DynUNet", "monai")
def monai_dynunet():
    from monai.networks.nets import DynUNet

    return DynUNet(2, 1, 2, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=[8, 16, 32, 64]), image(64, channels=1)


@network("MONAI BasicUNet", "monai")
def monai_basic_unet():
    from monai.networks.nets import BasicUNet

    return BasicUNet(2, 1, 2, features=(8, 8, 16, 32, 64, 8)), image(channels=1)


@network("efficientnet_pytorch b0", "efficientnet_pytorch")
def efficientnet():
    from efficientnet_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-b0", image_size=128), image()


# Written here, in the form that such projects write them


class ResidualBlock(nn.Module):
    def __init__(self, channels, norm=nn.InstanceNorm2d):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect") for _ in "12")
        self.norm1, self.norm2 = norm(channels), norm(channels)

    def forward(self, x):
        return x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))


@network("style transfer, as fast-neural-style")
def style():
    class Layer(nn.Module):
        def __init__(self, ins, outs, kernel, stride=1, upsample=None):
            super().__init__()
            self.upsample, self.pad = upsample, nn.ReflectionPad2d(kernel // 2)
            self.conv2d = nn.Conv2d(ins, outs, kernel, stride)

        def forward(self, x):
            if self.upsample:
                x = F.interpolate(x, mode="nearest", scale_factor=self.upsample)
            return self.conv2d(self.pad(x))

    norms = [nn.InstanceNorm2d(c, affine=True) for c in (8, 16, 32, 16, 8)]
    return nn.Sequential(
        Layer(3, 8, 9), norms[0], nn.ReLU(), Layer(8, 16, 3, 2), norms[1], nn.ReLU(), Layer(16, 32, 3, 2), norms[2],
        nn.ReLU(), *(ResidualBlock(32) for _ in range(3)), Layer(32, 16, 3, 1, 2), norms[3], nn.ReLU(),
        Layer(16, 8, 3, 1, 2), norms[4], nn.ReLU(), Layer(8, 3, 9),
    ), image()  # fmt: skip


@network("CycleGAN generator, whose parts keep features")
def cyclegan():
    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Sequential(nn.Conv2d(3, 16, 7, padding=3), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
            self.blocks = nn.ModuleList(ResidualBlock(32) for _ in range(4))
            self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(32, 16, 3, padding=1), nn.ReLU())
            self.last = nn.Conv2d(16, 3, 7, padding=3)

        def forward(self, x, layers=None):
            self.features = []
            x = self.down(x)
            for i, block in enumerate(self.blocks):
                x = block(x)
                if layers and i in layers:
                    self.features.append(x)
            return torch.tanh(self.last(self.up(x)))

    return Generator(), image()


@network("GAN generator, modulated as StyleGAN")
def stylegan():
    class Modulated(nn.Module):
        def __init__(self, ins, outs, up):
            super().__init__()
            self.up, self.weight = up, nn.Parameter(torch.randn(outs, ins, 3, 3) / 3)
            self.style = nn.Linear(16, ins)

        def forward(self, x, w):
            style = self.style(w)[:, None, :, None, None]
            weight = self.weight[None] * style
            weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
            n, _, h, width = x.shape
            x = F.conv2d(x.reshape(1, -1, h, width), weight.flatten(0, 1), padding=1, groups=n)
            x = x.view(n, -1, h, width)
            return F.interpolate(x, scale_factor=2.0) if self.up else x

    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.mapping = nn.Sequential(nn.Linear(16, 16), nn.LeakyReLU(0.2))
            self.const = nn.Parameter(torch.randn(1, 16, 8, 8))
            self.blocks = nn.ModuleList(Modulated(16, 16, i % 2 == 0) for i in range(4))
            self.rgb = nn.Sequential(ResidualBlock(16), ResidualBlock(16), nn.Conv2d(16, 3, 1))

        def forward(self, z):
            w, x = self.mapping(z), self.const.expand(len(z), -1, -1, -1)
            for block in self.blocks:
                x = F.leaky_relu(block(x, w), 0.2)
            return self.rgb(x)

    return Generator(), (torch.randn(2, 16),)


@network("GAN discriminator, as pix2pix with kernels of 4")
def patch_gan():
    layers = []
    for ins, outs, stride in [(3, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1)]:
        layers += [nn.Conv2d(ins, outs, 4, stride, 1), nn.InstanceNorm2d(outs), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(64, 1, 4, 1, 1)), image()


@network("GAN discriminator of several scales, as pix2pixHD")
def multiscale():
    class Discriminators(nn.Module):
        def __init__(self):
            super().__init__()
            self.scales = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(6, 16, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 3, 2, 1), nn.LeakyReLU(0.2),
                    nn.Conv2d(32, 32, 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 3, 1, 1),
                ) for _ in range(2)
            )  # fmt: skip

        def forward(self, image, label):
            x, answers = torch.cat([image, label], 1), []
            for scale in self.scales:
                maps = []
                for layer in scale:
                    maps.append(layer(maps[-1] if maps else x))
                answers.append(maps)
                x = F.avg_pool2d(x, 3, 2, 1)
            return answers

    return Discriminators(), (*image(), *image())


@network("speech generator, as HiFi-GAN")
def hifigan():
    class Block(nn.Module):
        def __init__(self, channels, kernel):
            super().__init__()
            weight_norm = nn.utils.parametrizations.weight_norm
            self.convs = nn.ModuleList(
                weight_norm(nn.Conv1d(channels, channels, kernel, padding=d * (kernel - 1) // 2, dilation=d))
                for d in (1, 3, 5)
            )

        def forward(self, x):
            for conv in self.convs:
                x = x + conv(F.leaky_relu(x, 0.1))
            return x

    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.pre, self.post = nn.Conv1d(20, 32, 7, padding=3), nn.Conv1d(8, 1, 7, padding=3)
            self.ups = nn.ModuleList(nn.ConvTranspose1d(i, o, 8, 4, 2) for i, o in ((32, 16), (16, 8)))
            self.blocks = nn.ModuleList(Block(c, k) for c in (16, 8) for k in (3, 7))

        def forward(self, x):
            x = self.pre(x)
            for i, up in enumerate(self.ups):
                x, total = up(F.leaky_relu(x, 0.1)), None
                for j in range(2):
                    y = self.blocks[2 * i + j](x)
                    total = y if total is None else total + y
                x = total / 2
            return torch.tanh(self.post(F.leaky_relu(x)))

    return Generator(), (torch.rand(1, 20, 64),)


@network("speech separation, as Conv-TasNet", "torchaudio")
def conv_tasnet():
    from torchaudio.models import ConvTasNet

    model = ConvTasNet(enc_num_feats=32, msk_num_feats=16, msk_num_hidden_feats=32, msk_num_layers=3, msk_num_stacks=1)
    return model, (torch.rand(1, 1, 4000),)


@network("speech separation, dilated, with gates")
def wavenet():
    class Layer(nn.Module):
        def __init__(self, dilation):
            super().__init__()
            self.filter, self.gate = (nn.Conv1d(16, 16, 3, padding=dilation, dilation=dilation) for _ in "12")
            self.skip, self.out = nn.Conv1d(16, 16, 1), nn.Conv1d(16, 16, 1)

        def forward(self, x):
            y = torch.tanh(self.filter(x)) * torch.sigmoid(self.gate(x))
            return x + self.out(y), self.skip(y)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.layers = nn.Conv1d(1, 16, 1), nn.ModuleList(Layer(2**i) for i in range(4))
            self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(16, 16, 1), nn.ReLU(), nn.Conv1d(16, 1, 1))

        def forward(self, x, lengths=None):
            x, total = self.first(x), 0
            for layer in self.layers:
                x, skip = layer(x)
                total = total + skip
            y = self.last(total)
            if lengths is not None and int(lengths.max()) < y.shape[-1]:
                y = y[..., : int(lengths.max())]
            return y

    return Net(), (torch.rand(2, 1, 512), torch.tensor([512, 400]))


@network("hyperspectral 3-d, as HybridSN")
def hybrid():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = (
                nn.Conv3d(1, 8, (7, 3, 3), padding=(0, 1, 1)),
                nn.Conv3d(8, 16, (5, 3, 3), padding=(0, 1, 1)),
            )
            self.conv3 = nn.Conv3d(16, 16, 3, padding=(0, 1, 1))
            self.conv4, self.out = nn.Conv2d(16 * 8, 32, 3, padding=1), nn.Linear(32, 9)

        def forward(self, x):
            x = F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))))
            n, c, d, h, w = x.size()
            return self.out(F.relu(self.conv4(x.reshape(n, c * d, h, w))).mean((2, 3)))

    return Net(), (torch.rand(2, 1, 20, 24, 24),)


@network("compression, as CompressAI's hyperprior")
def compression():
    class GDN(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.beta, self.gamma = nn.Parameter(torch.ones(channels)), nn.Parameter(0.1 * torch.eye(channels))

        def forward(self, x):
            return x * torch.rsqrt(F.conv2d(x**2, self.gamma[:, :, None, None], self.beta))

    class Codec(nn.Module):
        def __init__(self):
            super().__init__()
            self.g_a = nn.Sequential(
                nn.Conv2d(3, 16, 5, 2, 2), GDN(16), nn.Conv2d(16, 16, 5, 2, 2), GDN(16), nn.Conv2d(16, 24, 5, 2, 2)
            )
            self.g_s = nn.Sequential(
                nn.ConvTranspose2d(24, 16, 5, 2, 2, 1), GDN(16), nn.ConvTranspose2d(16, 16, 5, 2, 2, 1), GDN(16),
                nn.ConvTranspose2d(16, 3, 5, 2, 2, 1),
            )  # fmt: skip

        def forward(self, x):
            y = self.g_a(x)
            y = y + torch.rand_like(y) - 0.5 if self.training else torch.round(y)
            return {"x_hat": self.g_s(y), "likelihoods": {"y": y}}

    return Codec(), image()


@network("super-resolution, as EDSR")
def edsr():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = (
                nn.Conv2d(3, 32, 3, padding=1),
                nn.ModuleList(ResidualBlock(32, nn.Identity) for _ in range(4)),
            )
            self.tail = nn.Sequential(
                nn.Conv2d(32, 128, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(32, 3, 3, padding=1)
            )

        def forward(self, x):
            if x.max() > 2:
                x = x / 255
            x = y = self.head(x)
            for block in self.body:
                y = block(y)
            return self.tail(x + y)

    return Net(), image(64)


@network("stereo, siamese, with a cost volume")
def stereo():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=1),
            )  # fmt: skip
            self.cost = nn.Sequential(
                nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
                nn.Conv2d(16, 8, 3, padding=1),
            )  # fmt: skip

        def forward(self, left, right):
            a, b = self.features(left), self.features(right)
            volume = a.new_zeros(a.shape[0], 8, *a.shape[2:])
            for d in range(8):
                volume[:, d, :, d:] = (a[..., d:] * b[..., : b.shape[-1] - d]).mean(1)
            return self.cost(volume).softmax(1)

    return Net(), (*image(64), *image(64))


@network("detection head that loops over levels, as FCOS")
def fcos():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.towers = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(32, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1),
                    nn.GroupNorm(4, 32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1),
                ) for _ in "12"
            )  # fmt: skip
            self.cls, self.box = nn.Conv2d(32, 5, 3, padding=1), nn.Conv2d(32, 4, 3, padding=1)
            self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in range(3))

        def forward(self, maps):
            answers = []
            for scale, level in zip(self.scales, maps):
                scores, boxes = self.cls(self.towers[0](level)), self.box(self.towers[1](level)) * scale
                if not torch.isfinite(boxes).all():
                    raise FloatingPointError("diverged")
                answers.append((scores, boxes.exp()))
            return answers

    return Head(), ([torch.rand(1, 32, n, n) for n in (64, 32, 16)],)


@network("DDPM UNet with time embeddings")
def ddpm():
    class Block(nn.Module):
        def __init__(self, ins, outs):
            super().__init__()
            self.norm1, self.norm2 = nn.GroupNorm(4, ins), nn.GroupNorm(4, outs)
            self.conv1, self.conv2 = nn.Conv2d(ins, outs, 3, padding=1), nn.Conv2d(outs, outs, 3, padding=1)
            self.time, self.short = nn.Linear(16, outs), nn.Conv2d(ins, outs, 1) if ins != outs else nn.Identity()

        def forward(self, x, t):
            y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(t))[:, :, None, None]
            return self.conv2(F.silu(self.norm2(y))) + self.short(x)

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
            self.down = nn.ModuleList(Block(i, o) for i, o in ((16, 16), (16, 32)))
            self.up = nn.ModuleList(Block(i, o) for i, o in ((48, 16), (32, 16)))
            self.time = nn.Embedding(100, 16)

        def forward(self, x, t):
            if not torch.is_tensor(t):
                t = torch.tensor([t])
            t, maps = self.time(t.expand(len(x))), []
            x = self.first(x)
            for block in self.down:
                maps.append(x)
                x = F.avg_pool2d(block(x, t), 2)
            for block in self.up:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
                x = block(torch.cat([x, maps.pop()], 1), t)
            return self.last(x)

    return UNet(), (*image(64), 10)

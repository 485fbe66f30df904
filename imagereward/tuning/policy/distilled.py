"""warn_of_distilled: warns that an objective blurs models that were distilled to few sampling steps."""

import warnings

from imagereward.errors import DistilledModelWarning
from imagereward.tuning.families.base import Denoiser

# Schedulers that only models distilled to few steps come with.
FEW_STEP_SCHEDULERS = {"LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler"}


def distilled_because(denoiser: Denoiser) -> str | None:
    """Why the pipeline's scheduler or network says that it was distilled to few steps; None: it does not.

    Signs are a scheduler of consistency models; an Euler scheduler of a U-Net that spaces its times
    "trailing", as SD-Turbo, SDXL-Turbo, Lightning and Hyper; and a FLUX without guidance input whose times
    are not shifted by the size of the image, as FLUX.1 schnell.
    """
    scheduler, network = denoiser.pipeline.scheduler, denoiser.network
    name = type(scheduler).__name__
    if name in FEW_STEP_SCHEDULERS:
        return f"its scheduler is a {name}"
    if name.startswith("Euler") and scheduler.config.get("timestep_spacing") == "trailing":
        return f"its {name} has timestep_spacing='trailing'"
    unguided = getattr(network.config, "guidance_embeds", None) is False
    if unguided and not scheduler.config.get("use_dynamic_shifting", True):
        return "its transformer takes no guidance and its scheduler does not shift times by the image's size"
    return None


def warn_of_distilled(denoiser: Denoiser, objective: str) -> None:
    """Warns with DistilledModelWarning, naming the sign, if the model was distilled to few steps."""
    if reason := distilled_because(denoiser):
        warnings.warn(
            f"{objective}: the model seems distilled to few sampling steps ({reason}). The loss is the error "
            "of predicted clean images, whose best prediction at high noise is a mean of many images, so "
            "images of few steps become blurred; expected a model that was not distilled",
            DistilledModelWarning,
            stacklevel=3,
        )

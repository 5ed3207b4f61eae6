"""The names and signatures of OpenAI's package, with which scripts written for it call ours."""

import ast
import importlib
import inspect

import pytest

# Of each module: functions, and classes with their methods. A `*` begins what is given by name only.
INTERFACE = """
script_util:
    model_and_diffusion_defaults()
    create_model_and_diffusion(image_size, class_cond, learn_sigma, sigma_small, num_channels, num_res_blocks, num_heads, num_heads_upsample, attention_resolutions, dropout, diffusion_steps, noise_schedule, timestep_respacing, use_kl, predict_xstart, rescale_timesteps, rescale_learned_sigmas, use_checkpoint, use_scale_shift_norm)
    create_model(image_size, num_channels, num_res_blocks, learn_sigma, class_cond, use_checkpoint, attention_resolutions, num_heads, num_heads_upsample, use_scale_shift_norm, dropout)
    sr_model_and_diffusion_defaults()
    sr_create_model_and_diffusion(large_size, small_size, class_cond, learn_sigma, num_channels, num_res_blocks, num_heads, num_heads_upsample, attention_resolutions, dropout, diffusion_steps, noise_schedule, timestep_respacing, use_kl, predict_xstart, rescale_timesteps, rescale_learned_sigmas, use_checkpoint, use_scale_shift_norm)
    sr_create_model(large_size, small_size, num_channels, num_res_blocks, learn_sigma, class_cond, use_checkpoint, attention_resolutions, num_heads, num_heads_upsample, use_scale_shift_norm, dropout)
    create_gaussian_diffusion(*, steps=1000, learn_sigma=False, sigma_small=False, noise_schedule='linear', use_kl=False, predict_xstart=False, rescale_timesteps=False, rescale_learned_sigmas=False, timestep_respacing='')
    add_dict_to_argparser(parser, default_dict)
    args_to_dict(args, keys)
    str2bool(v)
gaussian_diffusion:
    get_named_beta_schedule(schedule_name, num_diffusion_timesteps)
    betas_for_alpha_bar(num_diffusion_timesteps, alpha_bar, max_beta=0.999)
    LossType.is_vb(self)
    GaussianDiffusion.__init__(self, *, betas, model_mean_type, model_var_type, loss_type, rescale_timesteps=False)
    GaussianDiffusion.q_mean_variance(self, x_start, t)
    GaussianDiffusion.q_sample(self, x_start, t, noise=None)
    GaussianDiffusion.q_posterior_mean_variance(self, x_start, x_t, t)
    GaussianDiffusion.p_mean_variance(self, model, x, t, clip_denoised=True, denoised_fn=None, model_kwargs=None)
    GaussianDiffusion.p_sample(self, model, x, t, clip_denoised=True, denoised_fn=None, model_kwargs=None)
    GaussianDiffusion.p_sample_loop(self, model, shape, noise=None, clip_denoised=True, denoised_fn=None, model_kwargs=None, device=None, progress=False)
    GaussianDiffusion.p_sample_loop_progressive(self, model, shape, noise=None, clip_denoised=True, denoised_fn=None, model_kwargs=None, device=None, progress=False)
    GaussianDiffusion.ddim_sample(self, model, x, t, clip_denoised=True, denoised_fn=None, model_kwargs=None, eta=0.0)
    GaussianDiffusion.ddim_reverse_sample(self, model, x, t, clip_denoised=True, denoised_fn=None, model_kwargs=None, eta=0.0)
    GaussianDiffusion.ddim_sample_loop(self, model, shape, noise=None, clip_denoised=True, denoised_fn=None, model_kwargs=None, device=None, progress=False, eta=0.0)
    GaussianDiffusion.ddim_sample_loop_progressive(self, model, shape, noise=None, clip_denoised=True, denoised_fn=None, model_kwargs=None, device=None, progress=False, eta=0.0)
    GaussianDiffusion.training_losses(self, model, x_start, t, model_kwargs=None, noise=None)
    GaussianDiffusion.calc_bpd_loop(self, model, x_start, clip_denoised=True, model_kwargs=None)
respace:
    space_timesteps(num_timesteps, section_counts)
    SpacedDiffusion.__init__(self, use_timesteps, **kwargs)
    SpacedDiffusion.p_mean_variance(self, model, *args, **kwargs)
    SpacedDiffusion.training_losses(self, model, *args, **kwargs)
resample:
    create_named_schedule_sampler(name, diffusion)
    ScheduleSampler.weights(self)
    ScheduleSampler.sample(self, batch_size, device)
    UniformSampler.__init__(self, diffusion)
    UniformSampler.weights(self)
    LossAwareSampler.update_with_local_losses(self, local_ts, local_losses)
    LossAwareSampler.update_with_all_losses(self, ts, losses)
    LossSecondMomentResampler.__init__(self, diffusion, history_per_term=10, uniform_prob=0.001)
    LossSecondMomentResampler.weights(self)
    LossSecondMomentResampler.update_with_all_losses(self, ts, losses)
losses:
    normal_kl(mean1, logvar1, mean2, logvar2)
    approx_standard_normal_cdf(x)
    discretized_gaussian_log_likelihood(x, *, means, log_scales)
image_datasets:
    load_data(*, data_dir, batch_size, image_size, class_cond=False, deterministic=False)
    ImageDataset.__init__(self, resolution, image_paths, classes=None, shard=0, num_shards=1)
train_util:
    TrainLoop.__init__(self, *, model, diffusion, data, batch_size, microbatch, lr, ema_rate, log_interval, save_interval, resume_checkpoint, use_fp16=False, fp16_scale_growth=0.001, schedule_sampler=None, weight_decay=0.0, lr_anneal_steps=0)
    TrainLoop.run_loop(self)
    TrainLoop.run_step(self, batch, cond)
    TrainLoop.forward_backward(self, batch, cond)
    TrainLoop.optimize_fp16(self)
    TrainLoop.optimize_normal(self)
    TrainLoop.log_step(self)
    TrainLoop.save(self)
    parse_resume_step_from_filename(filename)
    get_blob_logdir()
    find_resume_checkpoint()
    find_ema_checkpoint(main_checkpoint, step, rate)
    log_loss_dict(diffusion, ts, losses)
dist_util:
    setup_dist()
    dev()
    load_state_dict(path, **kwargs)
    sync_params(params)
logger:
    configure(dir=None, format_strs=None, comm=None)
    log(*args)
    debug(*args)
    info(*args)
    warn(*args)
    error(*args)
    logkv(key, val)
    logkv_mean(key, val)
    logkvs(d)
    dumpkvs()
    getkvs()
    get_dir()
    set_level(level)
    reset()
"""  # noqa: E501

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def published():
    """Yield (module, dotted name, signature as published)."""
    module = ""
    for line in INTERFACE.strip().splitlines():
        if not line.startswith(" "):
            module = line.rstrip(":")
            continue
        name, _, parameters = line.strip().partition("(")
        function = ast.parse(f"def f({parameters}: pass").body[0]
        namespace = {}
        exec(compile(ast.Module([function], []), "<interface>", "exec"), namespace)
        yield module, name, inspect.signature(namespace["f"])


@pytest.mark.parametrize(("module", "name", "theirs"), [pytest.param(*case, id=case[1]) for case in published()])
def test_calls_for_openais_function_fit_ours(module, name, theirs):
    target = importlib.import_module(f"improved_diffusion.{module}")
    for part in name.split("."):
        target = getattr(target, part)
    ours = list(inspect.signature(target).parameters.values())
    named = {p.name: p for p in ours}
    hands_on = {p.kind for p in theirs.parameters.values()}.issuperset(VARIABLE)  # theirs takes what another one takes
    for i, parameter in enumerate(theirs.parameters.values()):
        if parameter.kind in VARIABLE:
            assert hands_on or any(p.kind == parameter.kind for p in ours)
            continue
        if parameter.kind == parameter.POSITIONAL_OR_KEYWORD:
            assert (ours[i].name, ours[i].kind) == (parameter.name, parameter.kind)
        assert named[parameter.name].default == parameter.default
    new = [p for p in ours if p.name not in theirs.parameters and p.kind not in VARIABLE]
    assert hands_on or not [p.name for p in new if p.default is p.empty], "new parameters need defaults"


def test_flags_and_defaults_are_the_published_ones():
    from improved_diffusion.script_util import model_and_diffusion_defaults, sr_model_and_diffusion_defaults

    common = {
        "num_channels": 128,
        "num_res_blocks": 2,
        "num_heads": 4,
        "num_heads_upsample": -1,
        "attention_resolutions": "16,8",
        "dropout": 0.0,
        "learn_sigma": False,
        "class_cond": False,
        "diffusion_steps": 1000,
        "noise_schedule": "linear",
        "timestep_respacing": "",
        "use_kl": False,
        "predict_xstart": False,
        "rescale_timesteps": True,
        "rescale_learned_sigmas": True,
        "use_checkpoint": False,
        "use_scale_shift_norm": True,
    }
    assert model_and_diffusion_defaults().items() >= {**common, "image_size": 64, "sigma_small": False}.items()
    assert sr_model_and_diffusion_defaults().items() >= {**common, "large_size": 256, "small_size": 64}.items()


CONSTANTS = {
    "script_util.NUM_CLASSES": 1000,
    "train_util.INITIAL_LOG_LOSS_SCALE": 20.0,
    "dist_util.GPUS_PER_NODE": 8,
    "dist_util.SETUP_RETRY_COUNT": 3,
    "logger.DEBUG": 10,
    "logger.INFO": 20,
    "logger.WARN": 30,
    "logger.ERROR": 40,
    "logger.DISABLED": 50,
}


MEMBERS = {
    "ModelMeanType": ["PREVIOUS_X", "START_X", "EPSILON", "VELOCITY"],  # VELOCITY is this project's
    "ModelVarType": ["LEARNED", "FIXED_SMALL", "FIXED_LARGE", "LEARNED_RANGE"],
    "LossType": ["MSE", "RESCALED_MSE", "KL", "RESCALED_KL"],
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_the_published_ones(name):
    module, constant = name.split(".")
    assert getattr(importlib.import_module(f"improved_diffusion.{module}"), constant) == CONSTANTS[name]


@pytest.mark.parametrize("name", MEMBERS)
def test_types_of_process_have_the_published_members(name):
    from improved_diffusion import gaussian_diffusion

    assert [member.name for member in getattr(gaussian_diffusion, name)] == MEMBERS[name]


def test_samplers_have_the_published_family():
    from improved_diffusion import resample

    assert issubclass(resample.UniformSampler, resample.ScheduleSampler)
    assert issubclass(resample.LossAwareSampler, resample.ScheduleSampler)
    assert issubclass(resample.LossSecondMomentResampler, resample.LossAwareSampler)

#!/usr/bin/env bash
# Hyperparameters as exported strings; source this file, it runs nothing.
#
#   source flags.sh                # PRESET=seed, the documented commands
#   PRESET=paper source flags.sh   # each paper's CIFAR-10 recipe
#
# seed: the documented settings. paper: the papers' settings. gpu: one modern GPU, few sampling steps. cpu: small
# networks for 36 minutes a model on two CPU cores. quick: `shapes` in 150 s a model on two CPU cores.
# No value holds a space, so unquoted use splits into flags in bash; in zsh write ${=MODEL_FLAGS}.

DCGAN_FLAGS="" DCGAN_PLUS_FLAGS="" R3GAN_FLAGS="" # compare.sh --gan; GAN_FLAGS is one of them
case "${PRESET:-seed}" in
  seed)
    MODEL_FLAGS="--image_size 32 --num_channels 128 --num_res_blocks 2 --learn_sigma True --dropout 0.3"
    DIFFUSION_FLAGS="--diffusion_steps 4000 --noise_schedule linear"
    TRAIN_FLAGS="--lr 1e-4 --batch_size 128 --microbatch 64 --use_fp16 true --max_steps 5000 --save_interval 2500"
    SAMPLE_FLAGS="--batch_size 128"
    DISTILL_FLAGS="--lr 2e-4 --batch_size 64 --max_steps 5000 --save_interval 1000"
    DCGAN_FLAGS="--image_size 64 --batch_size 128 --num_epochs 50 --g_lr 1.6e-4 --d_lr 1.25e-4 --beta1 0.5"
    GAN_FLAGS=$DCGAN_FLAGS
    DDGAN_FLAGS="--image_size 32 --num_channels 3 --num_channels_dae 128 --num_timesteps 4 --num_res_blocks 2 --nz 100"
    DDGAN_FLAGS="$DDGAN_FLAGS --z_emb_dim 256 --n_mlp 4 --ch_mult 1 2 2 2"
    DDGAN_TRAIN_FLAGS="--batch_size 128 --num_epoch 50 --ngf 64 --embedding_type positional --use_ema"
    DDGAN_TRAIN_FLAGS="$DDGAN_TRAIN_FLAGS --ema_decay 0.9999 --r1_gamma 0.02 --lr_d 1.25e-4 --lr_g 1.6e-4"
    DDGAN_TRAIN_FLAGS="$DDGAN_TRAIN_FLAGS --lazy_reg 15 --num_process_per_node 1 --save_content"
    DDGAN_SAMPLE_FLAGS="--batch_size 200"
    ;;
  paper)
    # Nichol & Dhariwal 2021, L_hybrid on CIFAR-10
    MODEL_FLAGS="--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True --dropout 0.3"
    DIFFUSION_FLAGS="--diffusion_steps 4000 --noise_schedule cosine"
    TRAIN_FLAGS="--lr 1e-4 --batch_size 128 --use_fp16 true --max_steps 500000 --save_interval 25000"
    SAMPLE_FLAGS="--batch_size 256"
    DISTILL_FLAGS="--lr 2e-4 --batch_size 64 --max_steps 5000 --save_interval 1000"
    # Radford et al. 2016, at the size of the data
    DCGAN_FLAGS="--image_size 32 --batch_size 128 --num_epochs 50 --g_lr 2e-4 --d_lr 2e-4 --beta1 0.5"
    GAN_FLAGS=$DCGAN_FLAGS
    # Xiao et al. 2022, as published: 4 x 64 images per update; the released network is epoch 1,200 of 1,800
    DDGAN_FLAGS="--image_size 32 --num_channels 3 --num_channels_dae 128 --num_timesteps 4 --num_res_blocks 2 --nz 100"
    DDGAN_FLAGS="$DDGAN_FLAGS --z_emb_dim 256 --n_mlp 4 --ch_mult 1 2 2 2"
    DDGAN_TRAIN_FLAGS="--batch_size 256 --num_epoch 1800 --ngf 64 --use_ema --ema_decay 0.9999 --r1_gamma 0.02"
    DDGAN_TRAIN_FLAGS="$DDGAN_TRAIN_FLAGS --lr_d 1.25e-4 --lr_g 1.6e-4 --lazy_reg 15 --save_content"
    DDGAN_TRAIN_FLAGS="$DDGAN_TRAIN_FLAGS --save_ckpt_every 100 --keep 0"
    DDGAN_SAMPLE_FLAGS="--batch_size 200"
    ;;
  gpu)
    MODEL_FLAGS="--image_size 32 --num_channels 128 --num_res_blocks 2 --learn_sigma True --dropout 0.1"
    DIFFUSION_FLAGS="--diffusion_steps 4000 --noise_schedule cosine"
    TRAIN_FLAGS="--lr 2e-4 --batch_size 128 --use_fp16 true --ema_rate 0.999 --max_steps 0 --save_interval 5000"
    SAMPLE_FLAGS="--sampler dpmpp-sde --sigma_max 10 --num_sampling_steps 20 --batch_size 500"
    DISTILL_FLAGS="--lr 2e-4 --batch_size 64 --max_steps 0 --save_interval 1000" # not yet measured on a GPU
    DCGAN_FLAGS="--image_size 32 --batch_size 128 --num_epochs 0 --flip true --sample_batch_size 500"
    DCGAN_FLAGS="$DCGAN_FLAGS --score_every 500000"
    DCGAN_PLUS_FLAGS="--preset dcgan-plus $DCGAN_FLAGS"
    R3GAN_FLAGS="--preset r3gan-tiny $DCGAN_FLAGS --ngf 64 --ndf 64" # not yet measured on a GPU
    GAN_FLAGS=$DCGAN_FLAGS
    # DDGAN as in `cpu`, wider; not yet measured on a GPU. The published recipe made blobs in three minutes of an H200.
    DDGAN_FLAGS="--image_size 32 --num_channels 3 --domain patch --num_channels_dae 128 --ch_mult 1 2 --num_res_blocks 2"
    DDGAN_FLAGS="$DDGAN_FLAGS --attn_resolutions 8 --resblock_type ddpm --progressive_input none --fir --resamp_with_conv"
    DDGAN_FLAGS="$DDGAN_FLAGS --nz 64 --z_emb_dim 256 --t_emb_dim 128 --n_mlp 2 --num_timesteps 4 --beta_max 12"
    DDGAN_TRAIN_FLAGS="--batch_size 128 --num_epoch 0 --denoiser_fraction 0.4 --denoiser_d_every 4 --lr_denoiser 5e-4"
    DDGAN_TRAIN_FLAGS="$DDGAN_TRAIN_FLAGS --discriminator plain --discriminator_input x_0 --discriminator_shift"
    DDGAN_TRAIN_FLAGS="$DDGAN_TRAIN_FLAGS --ngf 64 --reconstruction constant --reconstruction_weight 20 --t_decay 0.67"
    DDGAN_TRAIN_FLAGS="$DDGAN_TRAIN_FLAGS --lr_g 2e-4 --lr_d 4e-4 --lr_decay cosine --lr_warmup 0.05 --r1_gamma 0.05"
    DDGAN_TRAIN_FLAGS="$DDGAN_TRAIN_FLAGS --lazy_reg 8 --penalty_estimate finite --use_ema --ema_horizon 0.08"
    DDGAN_SAMPLE_FLAGS="--batch_size 500 --eta 0"
    ;;
  cpu)
    # DDPM in 28.8 minutes of two cores: 8,400 updates, Frechet distance 78.2 on CIFAR-10 as JPEG. With two blocks, in
    # 36 minutes of a faster machine, 11,300 updates and 70.1; predicting the noise at full resolution 103.5. Two blocks,
    # after five minutes: image 105.5, velocity 108.8, both ± 3.
    MODEL_FLAGS="--image_size 32 --patch_size 0 --num_channels 64 --num_res_blocks 1 --norm_groups 16"
    MODEL_FLAGS="$MODEL_FLAGS --attention_resolutions 8"
    DIFFUSION_FLAGS="--diffusion_steps 1000 --noise_schedule cosine --prediction x_start --loss_weighting min-snr"
    TRAIN_FLAGS="--lr 1e-3 --batch_size 32 --beta2 0.99 --schedule_sampler stratified --ema_horizon 0.05 --ema_every 2"
    TRAIN_FLAGS="$TRAIN_FLAGS --lr_warmup 0.05 --lr_decay cosine"
    TRAIN_FLAGS="$TRAIN_FLAGS --max_steps 0 --save_interval 3000 --log_interval 50"
    SAMPLE_FLAGS="--sampler dpmpp --num_sampling_steps 20 --batch_size 100"
    # Measurements of distilling: docs/improved-diffusion.md, "One to four evaluations"
    DISTILL_FLAGS="--lr 3e-4 --batch_size 12 --max_steps 0 --save_interval 500 --log_interval 20"
    DCGAN_FLAGS="--image_size 32 --batch_size 128 --num_epochs 0 --flip true --grid_every 5"
    DCGAN_PLUS_FLAGS="--preset dcgan-plus $DCGAN_FLAGS"
    # R3GAN tiny in 36 minutes of two cores: 56,000 updates, Frechet distance 68.2 on CIFAR-10 as JPEG; DCGAN 85.6.
    # With the learning rate of `quick`, 2e-3, D's output is constant after 3,000 updates.
    R3GAN_FLAGS="--preset r3gan-tiny --image_size 32 --num_epochs 0 --grid_every 5 --score_every 0"
    R3GAN_FLAGS="$R3GAN_FLAGS --r1_gamma 0.5 --g_lr 5e-4 --d_lr 5e-4 --beta2 0.99"
    GAN_FLAGS=$R3GAN_FLAGS
    # DDGAN as in `quick`, with mirrored images, a longer denoiser phase and discriminator steps in it: Frechet distance
    # 103.4 after 36 minutes and 21,700 updates, 103.5 after 27; the published recipe reached 231.8
    DDGAN_FLAGS="--image_size 32 --num_channels 3 --domain patch --num_channels_dae 64 --ch_mult 1 1 --num_res_blocks 1"
    DDGAN_FLAGS="$DDGAN_FLAGS --attn_resolutions 8 --resblock_type ddpm --progressive_input none --fir --resamp_with_conv"
    DDGAN_FLAGS="$DDGAN_FLAGS --nz 64 --z_emb_dim 128 --t_emb_dim 64 --n_mlp 2 --num_timesteps 4 --beta_max 12"
    DDGAN_TRAIN_FLAGS="--batch_size 16 --num_epoch 0 --denoiser_fraction 0.5 --denoiser_d_every 4"
    DDGAN_TRAIN_FLAGS="$DDGAN_TRAIN_FLAGS --discriminator plain --discriminator_input x_0 --discriminator_shift"
    DDGAN_TRAIN_FLAGS="$DDGAN_TRAIN_FLAGS --ngf 32 --reconstruction constant --reconstruction_weight 20 --t_decay 0.67"
    DDGAN_TRAIN_FLAGS="$DDGAN_TRAIN_FLAGS --lr_g 5e-4 --lr_d 1e-3 --lr_decay cosine --lr_warmup 0.05 --r1_gamma 0.05"
    DDGAN_TRAIN_FLAGS="$DDGAN_TRAIN_FLAGS --lazy_reg 8 --use_ema --ema_horizon 0.08 --log_interval 50"
    DDGAN_SAMPLE_FLAGS="--batch_size 100 --eta 0"
    ;;
  quick)
    # DDPM in 150 s of two cores: 1,900 updates, 90% of 1,000 samples show one of 180 modes (seed 1: 175); on a slower
    # machine 1,230 updates, 75% and 167. At lr 2e-3 seed 0 reached 87%, and seed 1 diverged. With mirrored images 81 to
    # 85% of 400 samples show a mode.
    MODEL_FLAGS="--image_size 32 --patch_size 0 --num_channels 64 --num_res_blocks 1 --norm_groups 16"
    MODEL_FLAGS="$MODEL_FLAGS --attention_resolutions 8"
    DIFFUSION_FLAGS="--diffusion_steps 1000 --noise_schedule cosine --prediction x_start --loss_weighting min-snr"
    DIFFUSION_FLAGS="$DIFFUSION_FLAGS --snr_gamma 1"
    TRAIN_FLAGS="--lr 1e-3 --batch_size 16 --beta2 0.99 --schedule_sampler stratified --ema_horizon 0.05 --ema_every 2"
    TRAIN_FLAGS="$TRAIN_FLAGS --lr_warmup 0.1 --lr_decay cosine --random_flip False" # mirrored figures cast wrong shadows
    TRAIN_FLAGS="$TRAIN_FLAGS --max_steps 0 --save_interval 2000 --log_interval 20"
    SAMPLE_FLAGS="--sampler dpmpp-sde --num_sampling_steps 20 --batch_size 100"
    # 120 s of distilling on a machine half as fast: 43% of 1,000 samples show a mode with 2 evaluations, 65% with 4;
    # with 16 steps of the teacher 34% and 61%
    DISTILL_FLAGS="--lr 3e-4 --batch_size 12 --teacher_steps 8 --max_steps 0 --save_interval 500 --log_interval 10"
    # r3gan-tiny in 150 s of a machine half as fast, three seeds: 4,100 updates, Frechet distance 4.9, 21% of 1,000
    # samples show one of 77 modes; dcgan-plus in 8,200 updates 21, 9% and 31. Ablation: results/studies/gan-losses-shapes
    DCGAN_FLAGS="--image_size 32 --batch_size 32 --ngf 32 --ndf 32 --flip false --score_every 0"
    DCGAN_FLAGS="$DCGAN_FLAGS --num_epochs 0 --grid_every 5 --log_interval 50"
    DCGAN_PLUS_FLAGS="--preset dcgan-plus $DCGAN_FLAGS --g_lr 4e-4 --d_lr 4e-4 --diffaugment none --ema_horizon 0.1"
    DCGAN_PLUS_FLAGS="$DCGAN_PLUS_FLAGS --keep_best false"
    R3GAN_FLAGS="--preset r3gan-tiny $DCGAN_FLAGS"
    GAN_FLAGS=$R3GAN_FLAGS
    # DDGAN in 150 s of two cores, three seeds: 1,570 to 1,690 updates, Frechet distance 42 (34 to 49), 15% of 1,000
    # samples show one of 34 modes; on a slower machine 33, 15% and 24, and as a denoiser alone 154, 5% and 30.
    # Ablation: results/studies/hybrid
    DDGAN_FLAGS="--image_size 32 --num_channels 3 --domain patch --num_channels_dae 64 --ch_mult 1 1"
    DDGAN_FLAGS="$DDGAN_FLAGS --num_res_blocks 1 --attn_resolutions 8 --resblock_type ddpm --progressive_input none --fir"
    DDGAN_FLAGS="$DDGAN_FLAGS --resamp_with_conv --nz 64 --z_emb_dim 128 --t_emb_dim 64 --n_mlp 2"
    DDGAN_FLAGS="$DDGAN_FLAGS --num_timesteps 4 --beta_max 12"
    DDGAN_TRAIN_FLAGS="--batch_size 16 --num_epoch 0 --no_flip --denoiser_fraction 0.4"
    DDGAN_TRAIN_FLAGS="$DDGAN_TRAIN_FLAGS --discriminator plain --discriminator_input x_0 --discriminator_shift"
    DDGAN_TRAIN_FLAGS="$DDGAN_TRAIN_FLAGS --ngf 32 --reconstruction constant --reconstruction_weight 20 --t_decay 0.67"
    DDGAN_TRAIN_FLAGS="$DDGAN_TRAIN_FLAGS --lr_g 5e-4 --lr_d 1e-3 --lr_decay cosine --lr_warmup 0.05 --r1_gamma 0.05"
    DDGAN_TRAIN_FLAGS="$DDGAN_TRAIN_FLAGS --lazy_reg 8 --use_ema --ema_horizon 0.08 --log_interval 20"
    DDGAN_SAMPLE_FLAGS="--batch_size 100"
    ;;
  *)
    echo "flags.sh: error: PRESET=$PRESET: must be seed, paper, gpu, cpu or quick" >&2
    ;;
esac
export MODEL_FLAGS DIFFUSION_FLAGS TRAIN_FLAGS SAMPLE_FLAGS DISTILL_FLAGS
export GAN_FLAGS DCGAN_FLAGS DCGAN_PLUS_FLAGS R3GAN_FLAGS DDGAN_FLAGS DDGAN_TRAIN_FLAGS DDGAN_SAMPLE_FLAGS

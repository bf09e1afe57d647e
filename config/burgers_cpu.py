# The quick start: Burgers at nu .01, 512 points, on two CPU cores. Other keys have train.py's defaults, which
# were chosen for this recipe (dev/LOG.md).
#
#     python train.py config/burgers_cpu.py          (or make demo, which also evaluates and draws)
#
# 2 to 4 minutes. Test nRMSE .0016 (seeds 0 and 1). In five minutes of one thread .0013, FNO .0030
# (seeds 0 and 1: python -m dev.study zoo).
out_dir = 'out/burgers_cpu'
nu = .01
token_shift = 5                    # of the 16 points of a token

import cProfile,pstats,sys,threading
sys.argv=["svi-story","render","boards","--json","--models","/work/wt-endure/tests/data/svi/models","--dtype","float32","--memory","offload"]
import torch; torch.set_num_threads(1)
from svi_story.cli import main
p=cProfile.Profile()
p.enable()
try: main()
except SystemExit: pass
p.disable()
sys.stdout=sys.stderr
pstats.Stats(p).sort_stats("cumtime").print_stats(90)
